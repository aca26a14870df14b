"""ImageSet: labelled uint8 images with ids and provenance, stored as sharded Parquet.

Each file is self-describing: PNG bytes in an `image` column as Hugging Face `datasets` stores
them (so `load_dataset("parquet", ...)` decodes them), labels, ids, and one column per fact about
where an image came from; class names are in the schema's metadata.
"""

import io
import json
from collections.abc import Iterator, Sequence
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
from dinv.files import atomic_write

ROWS_PER_FILE = 1000
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

    def tensor(self) -> torch.Tensor:
        """Images as a uint8 tensor [N, C, H, W]."""
        return torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()


def save_image_set(images: ImageSet, folder: Path) -> None:
    """Write part-00000.parquet, part-00001.parquet, ... of 1,000 rows into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, start in enumerate(range(0, max(len(images), 1), ROWS_PER_FILE)):
        rows = range(start, min(start + ROWS_PER_FILE, len(images)))
        with atomic_write(folder / f"part-{i:05d}.parquet") as temporary:
            write_parquet(images.take(rows), temporary)


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
    pq.write_table(table, path, write_page_checksum=True)


def load_image_set(folder: Path) -> ImageSet:
    """Read every part of a folder, in order.

    Raises:
        UserError: a part is missing, truncated or not an image set.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no image set there; run dvc repro (or dvc pull) first")
    expected = [folder / f"part-{i:05d}.parquet" for i in range(len(paths))]
    if paths != expected:
        raise UserError(f"{folder}: parts are not numbered 0 to {len(paths) - 1}; run dvc checkout")
    parts = [_read_parquet(path) for path in paths]
    return concatenate(parts)


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


def _read_parquet(path: Path) -> ImageSet:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        meta = json.loads((table.schema.metadata or {})[b"dinv"])
        images = [_decode(image["bytes"]) for image in table["image"].to_pylist()]
    except (pa.ArrowException, OSError, KeyError, ValueError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: truncated, damaged or not an image set ({reason}); run dvc checkout"
        ) from error
    columns = {k: table[k].to_pylist() for k in table.column_names}
    provenance = {k: v for k, v in columns.items() if k not in ("image", "label", "id")}
    array = np.stack(images) if images else np.zeros((0, *meta["shape"]), np.uint8)
    labels = np.asarray(columns["label"], np.int64)
    return ImageSet(array, labels, columns["id"], meta["class_names"], provenance)


def _encode(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(png: bytes) -> NDArray[np.uint8]:
    # Pillow, since torchvision's decoder can end the whole process on damaged bytes.
    pixels = np.asarray(Image.open(io.BytesIO(png)), np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)
