"""Atomic writes and content digests."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dinv.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, so that equal values give equal bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def part_paths(folder: Path, suffix: str, content: str) -> list[Path]:
    """part-00000<suffix>, part-00001<suffix>, ... of a folder, in order; `content` says what they hold.

    Raises:
        UserError: there is none, or one is missing.
    """
    paths = sorted(folder.glob(f"part-*{suffix}"))
    if not paths:
        raise UserError(f"{folder}: no {content} there; run dvc repro (or dvc pull) first")
    if paths != [folder / f"part-{i:05d}{suffix}" for i in range(len(paths))]:
        raise UserError(f"{folder}: parts are not numbered 0 to {len(paths) - 1}; run dvc checkout")
    return paths


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def bytes_digest(*chunks: bytes) -> str:
    """SHA-256 over byte strings, each with its length, in hex."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(len(chunk).to_bytes(8, "little"))
        sha256.update(chunk)
    return sha256.hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it replaces `path`, on error it is removed.

    Killed at any moment, `path` holds the old content, the new, or for an instant is missing; never
    a mixture. What killed runs left beside it is removed.
    """
    path = path.resolve()  # a link to a folder elsewhere keeps pointing there
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old"))
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if left.is_dir() and not _is_alive(left.name.split(".")[-3]):
            shutil.rmtree(left)
    new.mkdir()
    try:
        yield new
        for file in new.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    """Whether another process with this number runs; one that this process may not signal does."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        return True
    return int(pid) != os.getpid()
