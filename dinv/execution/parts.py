"""Parts: the unit of work, of resuming, of distribution and of storage.

A part is a run of consecutive images. Finished parts live in a git-ignored scratch folder under
names that are digests of everything that determines them, so they are never computed twice and
never reused for something else. Beside each lies the digest of every image in it: when images are
added or removed, those that are known are copied out of older parts and only the others are
computed. DVC removes outputs before a stage runs; the scratch folder survives that, and kill -9.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dinv.execution.lock import exclusive
from dinv.files import atomic_write, digest_of, file_digest, new_folder

T = TypeVar("T")


def scratch_root() -> Path:
    """Scratch folder: $DINV_SCRATCH, else .scratch under the DVC root, else in this folder."""
    default = Path(os.environ.get("DVC_ROOT", ".")) / ".scratch"
    return Path(os.environ.get("DINV_SCRATCH") or default)


def to_bytes(write: Callable[[Path], object]) -> bytes:
    """What `write` writes to the path it is given."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        write(path)
        return path.read_bytes()


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How a part's content is stored, cut and joined; equal contents give equal bytes."""

    suffix: str
    read: Callable[[Path], T]
    write: Callable[[T, Path], None]
    take: Callable[[T, Sequence[int]], T]
    concatenate: Callable[[list[T]], T]


# Parts of one item each, never cut or joined.
FILES: Codec[bytes] = Codec(
    ".safetensors",
    Path.read_bytes,
    lambda content, path: _write_bytes(path, content),
    lambda content, rows: content,
    lambda contents: contents[0],
)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@dataclass(frozen=True)
class Plan:
    """All images of one stage, in order.

    Attributes:
        name: what a part is called in the progress bar.
        num_images: how many.
        part_size: images per part, a constant of the format.
        digests: rows -> one digest per image, of everything that determines its result.
        task: rows -> what a worker needs to compute them (picklable).
        unit: what the progress bar counts.
        units_per_image: how many of them an image takes.
        quiet: show a progress bar only where something is to be computed, and remove it then.
    """

    name: str
    num_images: int
    part_size: int
    digests: Callable[[Sequence[int]], list[str]]
    task: Callable[[Sequence[int]], Any]
    unit: str = "image"
    units_per_image: int = 1
    quiet: bool = False

    def parts(self) -> Iterator["Part"]:
        """Every part, in order; digests are computed as the iterator advances."""
        for start in range(0, self.num_images, self.part_size):
            yield self.part(range(start, min(start + self.part_size, self.num_images)))

    def part(self, rows: Sequence[int]) -> "Part":
        """The part of the given rows."""
        return Part(f"{self.name} {rows[0] // self.part_size}", rows, digest_of(self.digests(rows)))


@dataclass(frozen=True)
class Part:
    """Some images of a plan. `digest` covers all that determines the result."""

    name: str
    rows: Sequence[int]
    digest: str


class PartStore:
    """Finished parts of one stage. Each has a sidecar with the hash of its bytes and its images' digests."""

    def __init__(self, stage: str, root: Path | None = None):
        self.folder = (root or scratch_root()) / stage

    def path(self, part: Part) -> Path:
        """Where the part's bytes are, or will be."""
        return self.folder / f"{part.digest}.part"

    def has(self, part: Part) -> bool:
        """Whether the part is finished and its bytes are intact."""
        return self._intact(self.path(part))

    def add(self, part: Part, digests: list[str], write: Callable[[Path], object]) -> None:
        """Call `write` with a temporary path, then move its bytes in place."""
        with atomic_write(self.path(part)) as temporary:
            write(temporary)
            sha256 = file_digest(temporary)
        sidecar = {"name": part.name, "sha256": sha256, "images": digests}
        with atomic_write(self.path(part).with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(sidecar))

    def images_outside(self, parts: Sequence[Part], wanted: set[str]) -> dict[str, tuple[Path, int]]:
        """Digest -> (file, row) of the wanted images that are finished in parts other than those given."""
        given = {self.path(part) for part in parts}
        found: dict[str, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("*.part")):
            if path in given:
                continue
            images = self._sidecar(path).get("images", [])
            here = {digest: (path, row) for row, digest in enumerate(images) if digest in wanted}
            if here and self._intact(path):  # only files that are of use are read whole
                found |= here
        return found

    def lock(self, parts: Sequence[Part]) -> AbstractContextManager[None]:
        """Wait until no other run computes these parts. The lock ends with its process, however that dies."""
        path = self.folder / f"{digest_of([p.digest for p in parts])}.lock"
        return exclusive(path, "another run is computing the same parts; waiting for it")

    def _intact(self, path: Path) -> bool:
        expected = self._sidecar(path).get("sha256")
        return path.is_file() and expected == file_digest(path)

    def _sidecar(self, path: Path) -> dict[str, Any]:
        """What was written beside a finished part; empty if that is missing or damaged."""
        try:
            sidecar = json.loads(path.with_suffix(".json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return sidecar if isinstance(sidecar, dict) else {}


@dataclass(frozen=True)
class Assembly:
    """A part made of rows of older parts and of one piece that is still to be computed."""

    part: Part
    known: dict[int, tuple[Path, int]]
    piece: Part | None

    def write(self, store: PartStore, codec: Codec[Any], path: Path) -> None:
        """Put the rows together in order."""
        contents = {file: codec.read(file) for file, _ in self.known.values()}
        places = dict(self.known)
        if self.piece is not None:
            file = store.path(self.piece)
            contents[file] = codec.read(file)
            places |= {row: (file, i) for i, row in enumerate(self.piece.rows)}
        ordered = [places[row] for row in self.part.rows]
        codec.write(codec.concatenate([codec.take(contents[f], [i]) for f, i in ordered]), path)


def assemblies(
    plan: Plan, store: PartStore, missing: Sequence[Part], all_parts: Sequence[Part]
) -> list[Assembly]:
    """For every part that is not finished, what is known of it and what must be computed."""
    digests = [plan.digests(part.rows) for part in missing]
    index = store.images_outside(all_parts, {d for of_part in digests for d in of_part})
    made = []
    for part, of_part in zip(missing, digests, strict=True):
        known = {row: index[d] for row, d in zip(part.rows, of_part, strict=True) if d in index}
        rest = [row for row in part.rows if row not in known]
        piece = part if not known else plan.part(rest) if rest else None
        made.append(Assembly(part, known, piece))
    return made


def collect(store: PartStore, parts: Sequence[Part], folder: Path, suffix: str) -> None:
    """Copy finished parts into a stage's output folder as part-00000<suffix>, ...: all of them or none."""
    with new_folder(folder) as new:
        for i, part in enumerate(parts):
            shutil.copyfile(store.path(part), new / f"part-{i:05d}{suffix}")
