"""A lock between processes of one machine."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


@contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of a file, which is made if need be; if another process has it, say `waiting` and wait.

    The lock ends with its process, however that dies. It cannot be taken twice by one process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tqdm.write(f"{waiting} ({path})", sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
