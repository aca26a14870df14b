"""Where a user's labelled images are, and which source reads them."""

import csv
import os
from pathlib import Path

from dinv.errors import UserError
from dinv.sources.image_csv import TABLE
from dinv.sources.image_folder import SUFFIXES

SPLITS = ("train", "val", "test")
SHOWN = 5  # names in one message
ARROW = (
    "a `datasets` folder in Arrow format, which dinv does not read; write Parquet instead: "
    'datasets.load_from_disk(...)["train"].to_parquet("my_images/train.parquet"), likewise test'
)


def find_source(path: Path) -> tuple[str, Path]:
    """(name of the source, its root) of a folder or a table; raises UserError if there is none.

    `labels.csv` comes first, then Parquet files, then a folder per class.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder or file; give the folder of your images")
    if (path / TABLE).is_file():
        return "image_csv", path
    if (path / "train-images-idx3-ubyte.gz").is_file():
        return "fashion_mnist", path
    if any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        return "parquet", path
    if any(path.glob("*.arrow")) or any(path.glob("*/*.arrow")):
        raise UserError(f"{path}: {ARROW}")
    if not any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()):
        raise UserError(f"{path}: {_what_is_missing(path)}")
    return "image_folder", path


def _of_file(path: Path) -> tuple[str, Path]:
    if path.name == TABLE:
        return "image_csv", path.parent
    if path.suffix.lower() == ".csv":
        raise UserError(f"{path}: the table must be called {TABLE} and lie above its images; rename it")
    if path.suffix == ".parquet":
        raise UserError(f"{path}: give its folder, with train.parquet and test.parquet")
    raise UserError(f"{path}: neither a folder nor {TABLE}; give the folder of your images")


def _what_is_missing(path: Path) -> str:
    tables = sorted(path.glob("*.csv"))
    if tables:
        return f"has no {TABLE}; rename {tables[0].name}, with columns path and label"
    return f"has neither class folders, nor {TABLE}, nor train.parquet; make one folder per class"


def project_path(path: Path) -> str:
    """As `data.root` has it: relative below the project's folder, absolute elsewhere."""
    absolute = Path(os.path.abspath(path))  # links stay: a folder may be one to another disk
    here = Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.as_posix()


def require_only_images(root: Path) -> None:
    """Raise UserError if class folders hold other files: the source would name the first one only."""
    splits = [root / name for name in SPLITS if (root / name).is_dir()]
    above = splits if (root / "train").is_dir() else [root]
    other = [
        file.relative_to(root).as_posix()
        for folder in above
        for name in sorted(folder.iterdir())
        if name.is_dir() and not name.name.startswith(".")
        for file in sorted(name.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in SUFFIXES
    ]
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise UserError(
            f"{root}: not image files: {', '.join(other[:SHOWN])}{more}; move them out of the class folders"
        )


def brings_test(source: str, root: Path) -> bool:
    """Whether the user has made the test split; otherwise a fifth of every class is set aside."""
    if source == "image_folder":
        return (root / "train").is_dir()
    if source == "image_csv":
        with (root / TABLE).open(newline="", encoding="utf-8-sig") as file:
            return "split" in next(csv.reader(file), [])
    return True


def unread_folders(root: Path) -> list[str]:
    """Folders beside train/ and test/ that the source does not read, such as valid/."""
    if not (root / "train").is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in SPLITS and p.name[0] != ".")
