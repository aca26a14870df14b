"""What the page says of versions and licences."""

import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.errors import UserError
from dinv.hub import read_pin
from dinv.report.files import Files, Workspace, text

PACKAGES = ("dinv", "torch", "torchvision", "diffusers", "transformers", "dvc", "numpy", "scikit-learn")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licence:
    """What is known of the licence of something, and where that was read."""

    of: str
    path: str
    licence: str
    read_in: str
    url: str | None = None

    @property
    def restricts_use(self) -> bool:
        """Whether it may be an OpenRAIL licence: it says so, or it is the hub's and unknown."""
        return "rail" in self.licence.lower() or (self.licence == UNKNOWN and self.url is not None)


def about(params: Mapping[str, Any], num_test: Mapping[str, int]) -> list[str]:
    """What the run is of: data, model; `num_test` is class -> number of test images, empty if unknown."""
    data, model = params.get("data", {}), params.get("model", {})
    per_class = data.get("num_per_class")
    labelled = "all labelled images" if per_class is None else f"{per_class} labelled images per class"
    test = f"{sum(num_test.values()):,} test images of {len(num_test)} classes" if num_test else "test images"
    return [
        f"Data: {data.get('source')} in {data.get('root')}, {labelled}, {test}",
        f"Model: {model.get('path')}",
    ]


def licences(files: Files, params: Mapping[str, Any]) -> list[Licence]:
    """Of the data, the model and networks that compare image sets."""
    data, model = params.get("data", {}), params.get("model", {})
    features = params.get("measure", {}).get("features", {})
    wanted = [("data", data.get("root")), ("model", model.get("path"))]
    wanted += [(f"features {name}", block.get("path")) for name, block in features.items()]
    found = [_licence(files, of, str(path)) for of, path in wanted if path]
    if not found:
        raise UserError(f"{files.name}: params.yaml names no data and no model")
    return found


def _licence(files: Files, of: str, path: str) -> Licence:
    if PurePosixPath(path).suffix in (".yaml", ".yml"):
        return _of_pin(files, of, path)
    folder = path if files.names(path) else str(PurePosixPath(path).parent)
    names = files.names(folder)
    cards = [name for name in names if name.lower().startswith("readme")]
    terms = [name for name in names if re.match(r"(licen[cs]e|copying)", name.lower())]
    for name, read in (
        *((n, _front_matter) for n in cards),
        *((n, _first_line) for n in terms),
        *((n, _mention) for n in cards),
    ):
        licence = read(text(files, f"{folder}/{name}"))
        if licence:
            return Licence(of, path, licence, f"{folder}/{name}")
    return Licence(of, path, UNKNOWN, "no card, LICENSE or README says it")


def _of_pin(files: Files, of: str, path: str) -> Licence:
    """A repository of the hub: its card, if that is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - seldom needed, and takes long

    local = files.root / path if isinstance(files, Workspace) else Path(path)
    pin = read_pin(local) if local.is_file() else None
    if pin is None:
        return Licence(of, path, UNKNOWN, "the file is not here")
    url = f"https://huggingface.co/{pin.repo_id}"
    card = try_to_load_from_cache(pin.repo_id, "README.md", revision=pin.revision)
    licence = _front_matter(Path(card).read_text()) if isinstance(card, str) else None
    where = "its card" if licence else "its card is not on this machine"
    return Licence(of, path, licence or UNKNOWN, where, url)


def _front_matter(card: str) -> str | None:
    """The key `license` of a card's head."""
    head = re.match(r"---\n(.*?)\n---", card, re.S)
    try:
        values = YAML(typ="safe").load(head[1]) if head else None
    except YAMLError:
        return None  # a README that starts with a rule
    found = values.get("license") if isinstance(values, dict) else None
    name = values.get("license_name") if isinstance(values, dict) and found == "other" else None
    return ", ".join(found) if isinstance(found, list) else name or found


def _first_line(terms: str) -> str | None:
    return next((line.strip()[:120] for line in terms.splitlines() if line.strip()), None)


def _mention(readme: str) -> str | None:
    """The first sentence-like piece of a README that speaks of a licence."""
    found = re.search(r"[^.;\n]*\blicen[cs]ed?\b[^.;\n]*", readme, re.I)
    return found[0].strip(" -*#")[:120] if found else None


def versions(files: Files) -> dict[str, str]:
    """What made the page; that of the run is not recorded but for its files."""
    found = {"Python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    if isinstance(files, Workspace):
        found["git commit"] = _commit(files.root)
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit(root: Path) -> str:
    """HEAD, and whether files that git tracks differ from it."""
    head, status = (
        _git(root, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
    )
    if head is None:
        return "none: not a git repository"
    return head[:12] + (", with changes that are not committed" if status else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
