"""`dinv export`: outputs of the pipeline, for programs and people that have no dinv."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

from safetensors import SafetensorError, safe_open

from dinv.errors import UserError
from dinv.images.export import export_image_folder
from dinv.publish.push import RepoType, push_folder, require_token

Format = Literal["folder", "huggingface"]
Kind = Literal["images", "classifiers", "embeddings"]


@dataclass(frozen=True)
class Options:
    """What the command line says; None: not said."""

    format: Format | None = None
    license: str | None = None
    push: str | None = None
    public: bool = False


class Export(Protocol):
    """Writes one output into a new folder."""

    def write(self, target: Path) -> int:
        """Write all files; returns how many items there are."""
        ...


def export(source: Path, target: Path, options: Options) -> str:
    """Write an output to a new folder and, if asked to, upload that; returns what was done, a line each.

    Raises:
        UserError: the target exists, the source is damaged or no such output, an option has no effect, or
            the upload fails.
    """
    kind = kind_of(source)
    wanted = _format(source, kind, options)
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or give another folder")
    token = None if options.push is None else require_token(options.push)
    if wanted == "folder":
        return f"{export_image_folder(source, target)} images in {target}"
    made = _export_of(kind).of(source, options.license)
    done = f"{_write(made, target)} {kind} in {target}"
    if options.push is not None and token is not None:
        repo: RepoType = "dataset" if kind == "images" else "model"
        done += f"\n{push_folder(target, options.push, repo, options.public, token)}"
    return done


def _write(made: Export, target: Path) -> int:
    """All of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        new = Path(folder) / target.name
        new.mkdir()
        count = made.write(new)
        new.rename(target)
    return count


def kind_of(source: Path) -> Kind:
    """What an output folder holds; image sets are the rule, so a folder without any parts is called one."""
    first = source / "part-00000.safetensors"
    if not first.is_file():
        return "images"
    try:
        with safe_open(first, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{first}: truncated or damaged; run dvc checkout") from error
    if "classifier" in metadata:
        return "classifiers"
    if "ids" in metadata:
        return "embeddings"
    raise UserError(f"{source}: neither images, nor embeddings, nor classifiers; there is no export of it")


def _format(source: Path, kind: Kind, options: Options) -> Format:
    """The format, where not said what the source and the other options ask for; raises UserError."""
    if options.public and options.push is None:
        raise UserError("--public: has no effect without --push OWNER/NAME")
    is_images = kind == "images"
    if options.format == "folder":
        if not is_images:
            raise UserError(f"--format folder: is for image sets; {source} is none, leave it out")
        for name, value in (("license", options.license), ("push", options.push)):
            if value is not None:
                raise UserError(f"--{name}: needs --format huggingface; a folder per class has no card")
    if options.format is not None:
        return options.format
    asked = options.license is not None or options.push is not None
    return "huggingface" if asked or not is_images else "folder"


def _export_of(kind: Kind) -> Any:
    """The class that writes this kind, imported when it is needed."""
    if kind == "images":
        from dinv.publish.image_sets import ImageSetExport  # noqa: PLC0415

        return ImageSetExport
    if kind == "classifiers":
        from dinv.publish.classifiers import ClassifierExport  # noqa: PLC0415 - imports torch

        return ClassifierExport
    from dinv.publish.embeddings import EmbeddingsExport  # noqa: PLC0415 - imports torch

    return EmbeddingsExport
