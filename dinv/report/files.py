"""Where a run's files are read from: a folder with a project in it, or a revision of this one."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.errors import UserError

REMEDY = "run dvc repro, or dvc pull"
MAX_FETCHED = 2**30  # bytes of a folder that is copied out of DVC's cache for its pictures


class Files(Protocol):
    """The files of one run, named from the project's folder."""

    @property
    def name(self) -> str:
        """What the run is called."""
        ...

    def read(self, path: str) -> bytes:
        """Content of a file; raises UserError when it is not there."""
        ...

    def folder(self, path: str) -> Path:
        """A folder, on this machine; raises UserError when it is not there."""
        ...

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        ...


@dataclass(frozen=True)
class Workspace:
    """The files of a folder as they lie."""

    root: Path
    name: str

    def read(self, path: str) -> bytes:
        """Content of a file."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{self.root / path}: no such file; {REMEDY}") from error

    def folder(self, path: str) -> Path:
        """A folder."""
        found = self.root / path
        if not found.is_dir():
            raise UserError(f"{found}: no such folder; {REMEDY}")
        return found

    def names(self, path: str) -> list[str]:
        """Names in a folder."""
        found = self.root / path
        return sorted(p.name for p in found.iterdir()) if found.is_dir() else []


class Revision:
    """The files of a git revision or an experiment of DVC, from git and DVC's cache."""

    def __init__(self, revision: str, copies: Path):
        """`copies` is an empty folder for what pictures are read from; raises UserError on unknown names."""
        from dvc.api import DVCFileSystem  # noqa: PLC0415 - takes seconds
        from dvc.exceptions import DvcException  # noqa: PLC0415
        from scmrepo.exceptions import SCMError  # noqa: PLC0415

        self.name, self._copies = revision, copies
        try:
            self._system: Any = DVCFileSystem(".", rev=revision)
            self.read("params.yaml")
        except (DvcException, SCMError, UserError) as error:
            raise UserError(
                f"--against {revision}: no revision, experiment or folder with a params.yaml; "
                "see git log, and dvc exp list --all-commits"
            ) from error

    def read(self, path: str) -> bytes:
        """Content of a file."""
        return self._got(path, lambda: self._system.read_bytes(f"/{path}"))

    def folder(self, path: str) -> Path:
        """A copy of a folder, unless it is large."""
        target = self._copies / path
        if target.is_dir():
            return target
        size = self._got(path, lambda: self._system.du(f"/{path}"))
        if size > MAX_FETCHED:
            raise UserError(
                f"{self.name}: {path}: {size / 2**30:.1f} GiB, not copied for its pictures; "
                "check the revision out in a clone and give that folder"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        self._got(path, lambda: self._system.get(f"/{path}", str(target), recursive=True))
        return target

    def names(self, path: str) -> list[str]:
        """Names in a folder."""
        if not self._system.isdir(f"/{path}"):
            return []
        return sorted(str(p).rpartition("/")[2] for p in self._system.ls(f"/{path}", detail=False))

    def _got(self, path: str, get: Callable[[], Any]) -> Any:
        from dvc.exceptions import DvcException  # noqa: PLC0415

        try:
            return get()
        except (OSError, DvcException) as error:
            raise UserError(
                f"{self.name}: {path}: not in git or DVC's cache; dvc fetch may bring it"
            ) from error


def opened(against: str) -> AbstractContextManager[Any]:
    """What to keep open while files of `against` are read: a folder for copies if it is a revision."""
    return nullcontext(None) if is_project(Path(against)) else TemporaryDirectory(prefix="dinv-report-")


def is_project(folder: Path) -> bool:
    """Whether the folder has parameters of a run."""
    return (folder / "params.yaml").is_file()


def text(files: Files, path: str) -> str:
    """A file as text."""
    try:
        return files.read(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{files.name}: {path}: not text; {REMEDY}") from error


def table(files: Files, path: str, columns: list[str]) -> pd.DataFrame:
    """A CSV file that has at least these columns and a row; raises UserError.

    Columns named arm, class, actual, predicted, learned, kind, images, metric, split and features stay text.
    """
    words = (
        "arm",
        "class",
        "actual",
        "predicted",
        "learned",
        "kind",
        "images",
        "metric",
        "split",
        "features",
    )
    content = text(files, path)
    try:
        found = pd.read_csv(
            io.StringIO(content),
            dtype=dict.fromkeys(words, str),
            keep_default_na=False,
            na_values={name: [""] for name in ("value", "std", "loss", "accuracy")},
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise UserError(f"{files.name}: {path}: not a table ({' '.join(str(error).split())[:80]})") from error
    missing = [name for name in columns if name not in found]
    if missing or found.empty:
        what = f"has no column {missing[0]}" if missing else "has no rows"
        raise UserError(f"{files.name}: {path}: {what}")
    return found


def yaml(files: Files, path: str) -> dict[str, Any]:
    """A YAML file of sections, not validated: an older revision may have other parameters."""
    try:
        found = YAML(typ="safe").load(text(files, path))
    except YAMLError as error:
        raise UserError(f"{files.name}: {path}: not YAML ({' '.join(str(error).split())[:80]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{files.name}: {path}: has no sections")
    return found
