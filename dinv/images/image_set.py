"""ImageSet: labelled uint8 images with ids and provenance, stored as sharded Parquet.

Each file is self-describing: PNG bytes in an `image` column as Hugging Face `datasets` stores
them (so `load_dataset("parquet", ...)` decodes them), labels, ids, and one column per fact about
where an image came from; class names are in the schema's metadata.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from dinv.errors import UserError
from dinv.execution.parts import Codec
from dinv.files import atomic_write, bytes_digest, digest_of

ROWS_PER_FILE = 1000
ROWS_PER_GROUP = 100  # what is decoded at once when an image set is read in slices
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8 [N, H, W, C] with C = 1 or 3.
        labels: int64 [N], indices into class_names.
        ids: N distinct strings.
        class_names: one name per class; a class may have no image.
        provenance: further columns, N values each (e.g. source id, guidance scale).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]
    class_names: list[str]
    provenance: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, self.images.shape
        assert self.labels.dtype == np.int64, self.labels.dtype
        lengths = [len(column) for column in self.provenance.values()]
        assert {len(self.images), len(self.labels), *lengths} <= {n}, "columns differ in length"

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "ImageSet":
        """Return the given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        provenance = {k: [v[i] for i in index] for k, v in self.provenance.items()}
        ids = [self.ids[i] for i in index]
        return ImageSet(self.images[index], self.labels[index], ids, self.class_names, provenance)

    def digests(self, key: Any) -> list[str]:
        """One digest per image: of a JSON-serialisable key and the image's pixels, label and id."""
        common = digest_of(key).encode()
        return [
            bytes_digest(common, pixels.tobytes(), label.tobytes(), i.encode())
            for pixels, label, i in zip(self.images, self.labels, self.ids, strict=True)
        ]

    def tensor(self) -> torch.Tensor:
        """Images as a uint8 tensor [N, C, H, W]."""
        return torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()


def save_image_set(images: ImageSet, folder: Path) -> None:
    """Write part-00000.parquet, part-00001.parquet, ... of 1,000 rows into a new folder."""
    rows = batches(max(len(images), 1), ROWS_PER_FILE)
    save_chunks((images.take(range(len(images))[r]) for r in rows), folder)


def save_chunks(chunks: Iterable[ImageSet], folder: Path) -> None:
    """Write one file per chunk, made and freed one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, chunk in enumerate(chunks):
        with atomic_write(folder / f"part-{i:05d}.parquet") as temporary:
            write_parquet(chunk, temporary)


def write_parquet(images: ImageSet, path: Path) -> None:
    """Write one file; equal image sets give equal bytes under equal library versions."""
    encoded = [{"bytes": _encode(image), "path": None} for image in images.images]
    columns = {
        "image": pa.array(encoded, _IMAGE_TYPE),
        "label": pa.array(images.labels),
        "id": pa.array(images.ids, pa.string()),
        **{k: pa.array(v) for k, v in images.provenance.items()},
    }
    table = pa.table(columns)
    table = table.replace_schema_metadata(_metadata(table.schema, images))
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)


def load_image_set(folder: Path) -> ImageSet:
    """Read every part of a folder, in order.

    Raises:
        UserError: a part is missing, truncated or not an image set.
    """
    return concatenate([read_parquet(path) for path in part_paths(folder)])


def part_paths(folder: Path) -> list[Path]:
    """The files of an image set, in order; raises UserError when one is missing."""
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no image set there; run dvc repro (or dvc pull) first")
    if paths != [folder / f"part-{i:05d}.parquet" for i in range(len(paths))]:
        raise UserError(f"{folder}: parts are not numbered 0 to {len(paths) - 1}; run dvc checkout")
    return paths


class ImageSetReader:
    """An image set on disk, read in slices: memory holds labels, ids and what was asked for last.

    Attributes:
        labels: int64 [N].
        ids: N distinct strings.
        class_names: one name per class.
        shape: (H, W, C) of an image.
    """

    def __init__(self, folder: Path):
        self._paths = part_paths(folder)
        tables = [_read_table(path, columns=["label", "id"])[0] for path in self._paths]
        self.ids: list[str] = [i for table in tables for i in table["id"].to_pylist()]
        self.labels = np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64)
        meta = json.loads(tables[0].schema.metadata[b"dinv"])
        self.class_names: list[str] = meta["class_names"]
        self.shape: tuple[int, int, int] = tuple(meta["shape"])
        self._groups = _row_groups(self._paths)
        self._starts = np.array([start for _, _, start in self._groups])
        self._cached: tuple[int, ImageSet] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> ImageSet:
        """Read the given rows, in the given order; consecutive ones are read fastest."""
        groups = np.searchsorted(self._starts, np.asarray(rows), side="right") - 1
        pieces = [
            self._group(int(g)).take([row - self._groups[g][2]]) for row, g in zip(rows, groups, strict=True)
        ]
        return concatenate(pieces)

    def _group(self, index: int) -> ImageSet:
        if self._cached is None or self._cached[0] != index:
            path, group, _ = self._groups[index]
            self._cached = index, read_parquet(path, group)
        return self._cached[1]


def _row_groups(paths: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """(file, row group, first row) of every row group that has rows, in order."""
    groups, start = [], 0
    for path in paths:
        metadata = pq.read_metadata(path)
        for i in range(metadata.num_row_groups):
            groups.append((path, i, start))
            start += metadata.row_group(i).num_rows
    return groups


def concatenate(parts: Sequence[ImageSet]) -> ImageSet:
    """Join image sets of equal shape, classes and columns."""
    first = parts[0]
    return ImageSet(
        np.concatenate([p.images for p in parts]),
        np.concatenate([p.labels for p in parts]),
        [i for p in parts for i in p.ids],
        first.class_names,
        {k: [v for p in parts for v in p.provenance[k]] for k in first.provenance},
    )


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _metadata(schema: pa.Schema, images: ImageSet) -> dict[str, str]:
    features: dict[str, Any] = {
        name: {"dtype": str(schema.field(name).type), "_type": "Value"} for name in schema.names
    }
    features["image"] = {"_type": "Image"}
    features["label"] = {"names": images.class_names, "_type": "ClassLabel"}
    shape = list(images.images.shape[1:])
    return {
        "huggingface": json.dumps({"info": {"features": features}}),
        "dinv": json.dumps({"class_names": images.class_names, "shape": shape}),
    }


def read_parquet(path: Path, row_group: int | None = None) -> ImageSet:
    """Read one file, or one of its row groups; raises UserError when it is damaged."""
    table, pictures = _read_table(path, row_group)
    meta = json.loads(table.schema.metadata[b"dinv"])
    columns = {k: table[k].to_pylist() for k in table.column_names if k != "image"}
    provenance = {k: v for k, v in columns.items() if k not in ("label", "id")}
    array = np.stack(pictures) if pictures else np.zeros((0, *meta["shape"]), np.uint8)
    labels = np.asarray(columns["label"], np.int64)
    return ImageSet(array, labels, columns["id"], meta["class_names"], provenance)


def _read_table(
    path: Path, row_group: int | None = None, columns: list[str] | None = None
) -> tuple[pa.Table, list[NDArray[np.uint8]]]:
    """A file's table, and its decoded pictures if that column was asked for."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = range(file.num_row_groups) if row_group is None else [row_group]
            table = file.read_row_groups(list(groups), columns=columns)
        json.loads((table.schema.metadata or {})[b"dinv"])["shape"]
        encoded = table["image"].to_pylist() if columns is None else []
        return table, [_decode(image["bytes"]) for image in encoded]
    except (pa.ArrowException, OSError, KeyError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: truncated, damaged or not an image set ({reason}); run dvc checkout"
        ) from error


def _encode(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(png: bytes) -> NDArray[np.uint8]:
    # Pillow, since torchvision's decoder can end the whole process on damaged bytes.
    pixels = np.asarray(Image.open(io.BytesIO(png)), np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)


IMAGES = Codec(".parquet", read_parquet, write_parquet, ImageSet.take, concatenate)
