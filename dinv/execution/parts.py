"""Parts: the unit of work and of resuming.

Finished parts live in a git-ignored scratch folder under names that are digests of everything
that determines them, so they are never computed twice and never reused for something else.
DVC removes outputs before a stage runs; the scratch folder survives that, and kill -9.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dinv.errors import UserError
from dinv.files import atomic_write, digest_of, file_digest


def scratch_root() -> Path:
    """Scratch folder: $DINV_SCRATCH, else .scratch under the DVC root, else in this folder."""
    default = Path(os.environ.get("DVC_ROOT", ".")) / ".scratch"
    return Path(os.environ.get("DINV_SCRATCH") or default)


@dataclass(frozen=True)
class Part:
    """One unit of work. `digest` covers all that determines the result; `size` counts its images."""

    name: str
    digest: str
    size: int


class PartStore:
    """Finished parts of one stage. Each has a sidecar with the hash of its bytes."""

    def __init__(self, stage: str, root: Path | None = None):
        self.folder = (root or scratch_root()) / stage

    def path(self, part: Part) -> Path:
        """Where the part's bytes are, or will be."""
        return self.folder / f"{part.digest}.part"

    def has(self, part: Part) -> bool:
        """Whether the part is finished and its bytes are intact."""
        path, sidecar = self.path(part), self._sidecar(part)
        if not (path.is_file() and sidecar.is_file()):
            return False
        try:
            expected = json.loads(sidecar.read_text())["sha256"]
        except (ValueError, KeyError):
            return False
        return expected == file_digest(path)

    def add(self, part: Part, write: Callable[[Path], None]) -> None:
        """Call `write` with a temporary path, then move its bytes in place."""
        with atomic_write(self.path(part)) as temporary:
            write(temporary)
            sha256 = file_digest(temporary)
        with atomic_write(self._sidecar(part)) as temporary:
            temporary.write_text(json.dumps({"name": part.name, "sha256": sha256}))

    @contextmanager
    def lock(self, parts: Sequence[Part]) -> Iterator[None]:
        """Refuse a second run of the same work. The lock ends with the process, however it dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{digest_of([p.digest for p in parts])}.lock"
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{path}: another run is computing the same parts; wait for it or stop it"
                ) from error
            yield

    def _sidecar(self, part: Part) -> Path:
        return self.folder / f"{part.digest}.json"


def run_parts(
    store: PartStore,
    parts: Sequence[Part],
    compute: Callable[[int, Callable[[int], None]], Callable[[Path], None]],
    unit: str = "image",
    units_per_image: int = 1,
) -> list[Path]:
    """Compute the parts that are not finished and return the paths of all, in order.

    `compute(i, advance)` computes part i, calls `advance(n)` as n units are done, and returns a
    function that writes the result to a path. The bar counts units (images, or image-visits).
    """
    done = [store.has(part) for part in parts]
    total = sum(part.size for part in parts) * units_per_image
    initial = sum(p.size for p, d in zip(parts, done, strict=True) if d) * units_per_image
    with store.lock(parts), tqdm(total=total, initial=initial, unit=unit, mininterval=1) as bar:
        if any(done):
            bar.write(f"{sum(done)} of {len(parts)} parts are already finished")

        def advance(n: int) -> None:
            bar.update(n)

        for i, part in enumerate(parts):
            if not done[i]:
                bar.set_description(part.name)
                store.add(part, compute(i, advance))
    return [store.path(part) for part in parts]


def collect(paths: Sequence[Path], folder: Path, suffix: str) -> None:
    """Copy finished parts into a stage's output folder as part-00000<suffix>, part-00001<suffix>..."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i, path in enumerate(paths):
        with atomic_write(folder / f"part-{i:05d}{suffix}") as temporary:
            shutil.copyfile(path, temporary)
