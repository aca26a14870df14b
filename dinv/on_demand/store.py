"""Pixels on disk up to a size, shared by processes; the oldest go first."""

import hashlib
import sqlite3
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import diskcache
from filelock import FileLock

from dinv.errors import UserError

NUM_LOCKS = 64  # files; two groups that share one only wait for each other


class PixelStore:
    """diskcache.Cache of bytes by digest; safe to be used by several processes, forked or spawned."""

    def __init__(self, folder: Path, size_limit: int):
        """Open, or make, the cache in a folder of at most about `size_limit` bytes; raises UserError."""
        if size_limit <= 0:
            raise UserError(f"size_limit = {size_limit}: bytes on disk, must be > 0")
        self.folder = folder.absolute()
        try:
            self._cache = diskcache.Cache(self.folder, size_limit=size_limit)
        except (OSError, sqlite3.Error, diskcache.Timeout) as error:
            raise UserError(f"{folder}: no cache can be kept there ({error}); give another folder") from error

    def get(self, key: str) -> bytes | None:
        """What was put under a key; None if nothing was, or it had to go."""
        found: bytes | None = self._cache.get(key)
        return found

    def put(self, values: Mapping[str, bytes]) -> None:
        """Remember all of them; what is older goes when the limit is passed."""
        with self._cache.transact(retry=True):
            for key, value in values.items():
                self._cache.set(key, value, retry=True)

    def lock(self, key: str) -> AbstractContextManager[object]:
        """One process at a time; the lock ends with its process, however that dies."""
        number = hashlib.sha256(key.encode()).digest()[0] % NUM_LOCKS
        return FileLock(self.folder / f"{number:02d}.lock")

    @property
    def volume(self) -> int:
        """Bytes on disk."""
        return int(self._cache.volume())
