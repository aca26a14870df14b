"""The user's own images, listed in `root/labels.csv`.

Columns `path` (relative, below root) and `label`; with a third, `split` (train, val, test), that split is
used, else a fifth of every class is set aside for test. Other columns are ignored.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinv.errors import UserError
from dinv.images.split import split_off_test
from dinv.sources.base import RawImages, RawSplits
from dinv.sources.image_folder import read_picture

TABLE = "labels.csv"
SPLITS = ("train", "val", "test")
DVC_CACHE = ("files", "md5")  # .dvc/cache/files/md5/d4/1d8cd98f00b204e9800998ecf8427e


def load(root: Path, seed: int) -> RawSplits:
    """List the images; pixels are read later, one at a time."""
    rows = read_table(root / TABLE)
    class_names = sorted({row["label"] for row in rows})
    if len(class_names) < 2:
        raise UserError(f"{root / TABLE}: found {len(class_names)} classes; classification needs two")
    if "split" not in rows[0]:
        pool = _images(root, rows, class_names)
        rest, test_rows = split_off_test(pool.labels, pool.ids, class_names, seed)
        return RawSplits(class_names, pool.take(rest), None, pool.take(test_rows))
    parts = {s: _images(root, [r for r in rows if r["split"] == s], class_names) for s in SPLITS}
    if not parts["train"].ids or not parts["test"].ids:
        raise UserError(f"{root / TABLE}: column split needs rows of train and of test")
    return RawSplits(class_names, parts["train"], parts["val"] if parts["val"].ids else None, parts["test"])


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table with columns path and label, and any others; raises UserError for the first wrong one.

    Each path is in its shortest form, leads to a file below the table's folder and is listed once.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = list(csv.DictReader(file, strict=True))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; it needs columns path and label") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}); save it again") from error
    for column in ("path", "label"):
        if not table or column not in table[0]:
            raise UserError(f"{path}: no column {column!r} or no rows; it needs columns path and label")
    for line, row in enumerate(table, 2):
        _check(row, f"{path}:{line}")
        row["path"] = _below_root(row["path"], f"{path}:{line}")
    _check_distinct([row["path"] for row in table], path)
    return table


def _below_root(path: str, place: str) -> str:
    """The path in its shortest form, which is the image's id: `./a.png` and `b/../a.png` are `a.png`."""
    shortest = Path(os.path.normpath(path))
    if shortest.is_absolute() or shortest.parts[:1] == ("..",):
        raise UserError(
            f"{place}: {path!r} is not below the table's folder, where DVC sees it; move it there"
        )
    return shortest.as_posix()


def _check(row: dict[str, str], place: str) -> None:
    for column in ("path", "label"):
        if not row[column]:
            raise UserError(f"{place}: {column} is empty; fill it or remove the line")
    if "split" in row and row["split"] not in SPLITS:
        raise UserError(f"{place}: split = {row['split']!r}; write train, val or test")


def _check_distinct(paths: Sequence[str], table: Path) -> None:
    seen: dict[Path, str] = {}
    for path in paths:
        if not (table.parent / path).is_file():
            raise UserError(f"{table}: {path!r}: no such file below {table.parent}; correct the path")
        file = _file(table.parent / path)
        if file in seen:
            other = "" if seen[file] == path else f", as {seen[file]!r} too"
            raise UserError(f"{table}: {path!r} is listed twice{other}; remove one line")
        seen[file] = path


def _file(path: Path) -> Path:
    """The file that a path leads to.

    Links that DVC makes into its cache (cache.type symlink) are not followed: there, equal pictures
    are one file, and whether they may be listed twice must not depend on the machine.
    """
    file = path.resolve()
    return path.absolute() if file.parts[-4:-2] == DVC_CACHE else file


def _images(root: Path, rows: Sequence[dict[str, str]], class_names: list[str]) -> RawImages:
    paths = [row["path"] for row in rows]
    labels = np.asarray([class_names.index(row["label"]) for row in rows], np.int64)
    return RawImages(paths, labels, lambda i: read_picture(root / paths[i]))
