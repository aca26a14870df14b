"""What the sources that are fetched from the network have in common.

torchvision's and medmnist's own loaders download, check the archives' MD5 and unpack.
"""

import http.client
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dinv.errors import UserError

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


def fetch(name: str, root: Path, files: str, make: Callable[[Path], T]) -> T:
    """Return `make(folder)`, a loader that downloads what is not there yet.

    Raises:
        UserError: several attempts failed; it says which files to put where.
    """
    folder = downloads(root)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            return make(folder)
        except FAILURES as error:
            if attempt == ATTEMPTS - 1:
                reason = " ".join(str(error.__context__ or error).split())  # medmnist hides its cause
                raise UserError(
                    f"data.source = {name!r}: download failed {ATTEMPTS} times ({reason}); "
                    f"check the network, or put {files} into {folder}"
                ) from error
    raise AssertionError("unreachable")


def remove_if_incomplete(folder: Path, pattern: str, count: int) -> None:
    """Delete an unpacked folder that an interruption left with too few files: loaders trust it."""
    if folder.exists() and sum(1 for _ in folder.glob(pattern)) != count:
        shutil.rmtree(folder)
