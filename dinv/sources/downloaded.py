"""What the sources that are fetched from the network have in common.

torchvision's and medmnist's own loaders download, check the archives' MD5 and unpack.
"""

import http.client
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dinv.errors import UserError
from dinv.execution.lock import exclusive

T = TypeVar("T")
ATTEMPTS = 3
FAILURES = (
    OSError,  # includes urllib's errors
    RuntimeError,  # torchvision's and medmnist's for a wrong MD5
    EOFError,
    http.client.HTTPException,
    tarfile.TarError,
    zipfile.BadZipFile,
)


def downloads(root: Path) -> Path:
    """Where archives lie: below the project that was started, also for a run in a copy of it.

    `dvc exp run --queue` and `--temp` work in a copy that has no ignored files.
    """
    return Path(os.environ.get("DVC_ROOT", "."), root)


@dataclass(frozen=True)
class Unpacked:
    """A folder that a loader unpacks once and then trusts: how many files of a pattern it must have."""

    path: str
    pattern: str
    num_files: int

    def remove_if_incomplete(self, root: Path) -> None:
        """Delete it, below `root`, if an interruption left it with too few files."""
        folder = root / self.path
        if folder.exists() and sum(1 for _ in folder.glob(self.pattern)) != self.num_files:
            shutil.rmtree(folder)


def fetch(
    name: str, root: Path, files: str, make: Callable[[Path], T], unpacked: Unpacked | None = None
) -> T:
    """Return `make(folder)`, a loader that downloads and unpacks what is not there yet.

    One process at a time does that for a data set. What it unpacks is removed before if it is incomplete.

    Raises:
        UserError: several attempts failed; it says which files to put where.
    """
    folder = downloads(root)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(name, folder):
        return _try(name, folder, files, make, unpacked)


def _alone(name: str, folder: Path) -> AbstractContextManager[None]:
    """A lock where files can change; a read-only folder that many share needs none."""
    if not os.access(folder, os.W_OK):
        return nullcontext()
    return exclusive(folder / f".{name}.lock", f"another run is fetching {name}; waiting for it")


def _try(name: str, folder: Path, files: str, make: Callable[[Path], T], unpacked: Unpacked | None) -> T:
    for attempt in range(ATTEMPTS):
        try:
            if unpacked is not None:
                unpacked.remove_if_incomplete(folder)
            return make(folder)
        except FAILURES as error:
            if attempt == ATTEMPTS - 1:
                reason = " ".join(str(error.__context__ or error).split())  # medmnist hides its cause
                raise UserError(
                    f"data.source = {name!r}: download failed {ATTEMPTS} times ({reason}); "
                    f"check the network, or put {files} into {folder}"
                ) from error
    raise AssertionError("unreachable")
