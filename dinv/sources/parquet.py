"""Labelled images in Parquet files, as Hugging Face `datasets` writes them.

`root/train.parquet` and `root/test.parquet`, `root/val.parquet` optional; a split may also be several files,
`train-00000-of-00002.parquet`, and all may lie in `root/data`. Column `image` has the encoded pictures, and
column `label` or `class` names, or numbers that the file's metadata names.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits
from dinv.sources.image_folder import read_picture

LABEL_COLUMNS = ("label", "class")


def load(root: Path, seed: int) -> RawSplits:
    """Read the files; pictures are decoded later, one at a time. Raises UserError."""
    folder = root / "data" if not _files(root, "train") and (root / "data").is_dir() else root
    tables = {split: _read(folder, split) for split in ("train", "test")}
    val_name = next((name for name in ("val", "validation") if _files(folder, name)), None)
    if val_name:
        tables[val_name] = _read(folder, val_name)
    names = {split: _class_of_rows(table, folder / split) for split, table in tables.items()}
    class_names = sorted(set(names["train"]))
    if len(class_names) < 2:
        raise UserError(f"{folder}/train: found {len(class_names)} classes; classification needs two")
    splits = {s: _images(s, tables[s], names[s], class_names, folder) for s in tables}
    return RawSplits(class_names, splits["train"], splits[val_name] if val_name else None, splits["test"])


def _files(folder: Path, split: str) -> list[Path]:
    return sorted([*folder.glob(f"{split}.parquet"), *folder.glob(f"{split}-*.parquet")])


def _read(folder: Path, split: str) -> pa.Table:
    files = _files(folder, split)
    if not files:
        raise UserError(f"{folder}: no {split}.parquet; data.root must hold train.parquet and test.parquet")
    try:
        return pa.concat_tables([pq.read_table(file) for file in files])
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{files[0]}: not a Parquet file, or damaged ({reason}); write it again") from error


def _class_of_rows(table: pa.Table, place: Path) -> list[str]:
    column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if column is None or "image" not in table.column_names:
        found = ", ".join(table.column_names)
        raise UserError(f"{place}: columns are {found}; it needs image, and label or class")
    values = table[column].to_pylist()
    if None in values:
        raise UserError(f"{place}: row {values.index(None)}: {column} is empty; fill it or remove the row")
    names = _names_in_metadata(table, column)
    if names and max(values) >= len(names):
        raise UserError(f"{place}: {column} {max(values)} has no name among the {len(names)} of the metadata")
    return [names[value] if names else str(value) for value in values]


def _names_in_metadata(table: pa.Table, column: str) -> list[str]:
    """Names of an integer column as `datasets` keeps them; empty if there are none."""
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(column, {})
    return list(feature.get("names", [])) if pa.types.is_integer(table[column].type) else []


def _images(split: str, table: pa.Table, names: list[str], class_names: list[str], folder: Path) -> RawImages:
    unknown = set(names) - set(class_names)
    if unknown:
        raise UserError(f"{folder}/{split}: class {min(unknown)!r} is not in train; add it or remove this")
    labels = np.asarray([class_names.index(name) for name in names], np.int64)
    ids, column = _ids(split, table["image"]), table["image"]
    return RawImages(ids, labels, lambda i: _picture(column[i].as_py(), folder / ids[i]))


def _ids(split: str, column: pa.ChunkedArray) -> list[str]:
    """Paths that the file gives its pictures, or numbers if these are not distinct."""
    paths = column.combine_chunks().field("path").to_pylist()
    if None in paths or len(set(paths)) < len(paths):
        return [f"{split}/{i:06d}" for i in range(len(paths))]
    return [f"{split}/{path}" for path in paths]


def _picture(entry: dict[str, Any] | None, place: Path) -> Image.Image:
    if not entry or not entry["bytes"]:
        raise UserError(f"{place}: no picture in column image; write its bytes into the Parquet file")
    return read_picture(place, entry["bytes"])
