"""One Parquet file of an image set.

Each file is self-describing: PNG bytes in an `image` column as Hugging Face `datasets` stores
them (so `load_dataset("parquet", ...)` decodes them), labels, ids, one column per fact about where
an image came from, and `probabilities` where labels are soft; class names are in the schema's
metadata.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dinv.errors import UserError
from dinv.execution.parts import Codec
from dinv.images.labelled import ImageSet, are_distributions, concatenate

SUFFIX = ".parquet"
ROWS_PER_FILE = 1000
ROWS_PER_GROUP = 100  # what is decoded at once when an image set is read in slices
OWN_COLUMNS = ("image", "label", "id", "probabilities")  # all others are provenance
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(images: ImageSet, path: Path) -> None:
    """Write one file; equal image sets give equal bytes under equal library versions."""
    schema = schema_of(images)
    with open_parquet(path, schema) as file:
        file.write_table(to_table(images, schema), row_group_size=ROWS_PER_GROUP)


def open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A new file that tables of this schema are appended to."""
    return pq.ParquetWriter(path, schema, write_page_checksum=True)


def schema_of(images: ImageSet) -> pa.Schema:
    """Columns and metadata of a file that holds these images; their pixels are not read."""
    types = {
        "image": _IMAGE_TYPE,
        "label": pa.int64(),
        "id": pa.string(),
        **{k: pa.array(v).type for k, v in images.provenance.items()},
    }
    if images.probabilities is not None:
        types["probabilities"] = pa.list_(pa.float32())
    schema = pa.schema(list(types.items()))
    return schema.with_metadata(_metadata(schema, images))


def to_table(images: ImageSet, schema: pa.Schema) -> pa.Table:
    """Images as rows of a file of this schema."""
    columns: dict[str, Any] = {
        "image": [{"bytes": _encode(image), "path": None} for image in images.images],
        "label": images.labels,
        "id": images.ids,
        **images.provenance,
    }
    if images.probabilities is not None:
        columns["probabilities"] = list(images.probabilities)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(arrays, schema=schema)


def _metadata(schema: pa.Schema, images: ImageSet) -> dict[str, str]:
    features: dict[str, Any] = {
        name: {"dtype": str(schema.field(name).type), "_type": "Value"} for name in schema.names
    }
    features["image"] = {"_type": "Image"}
    features["label"] = {"names": images.class_names, "_type": "ClassLabel"}
    if "probabilities" in features:
        value = {"dtype": "float32", "_type": "Value"}
        features["probabilities"] = {"feature": value, "_type": "Sequence"}
    shape = list(images.images.shape[1:])
    return {
        "huggingface": json.dumps({"info": {"features": features}}),
        "dinv": json.dumps({"class_names": images.class_names, "shape": shape}),
    }


def read_parquet(path: Path, row_group: int | None = None) -> ImageSet:
    """Read one file, or one of its row groups; raises UserError when it is damaged."""
    with damage_named(path):
        table, meta = read_table(path, row_group)
        pictures = [_decode(image["bytes"]) for image in table["image"].to_pylist()]
        array = np.stack(pictures) if pictures else np.zeros((0, *meta["shape"]), np.uint8)
        labels = table["label"].to_numpy().astype(np.int64)
        soft = soft_labels(table, len(meta["class_names"]))
        return ImageSet(
            array, labels, table["id"].to_pylist(), meta["class_names"], provenance_of(table), soft
        )


def read_table(
    path: Path, row_group: int | None = None, columns: list[str] | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """The table of a file or of one row group, and the class names and image shape of its metadata."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        groups = range(file.num_row_groups) if row_group is None else [row_group]
        table = file.read_row_groups(list(groups), columns=columns)
    meta = json.loads((table.schema.metadata or {})[b"dinv"])
    return table, {"class_names": meta["class_names"], "shape": tuple(meta["shape"])}


def provenance_of(table: pa.Table) -> dict[str, list[Any]]:
    """The columns that say where images come from."""
    return {name: table[name].to_pylist() for name in table.column_names if name not in OWN_COLUMNS}


def soft_labels(table: pa.Table, num_classes: int) -> NDArray[np.float32] | None:
    """The column of probabilities, float32 [N, num_classes]; raises ValueError when it is no such thing."""
    if "probabilities" not in table.column_names:
        return None
    column = table["probabilities"].combine_chunks()
    if any(n != num_classes for n in column.value_lengths().to_pylist()):
        raise ValueError(f"probabilities are not of {num_classes} classes")
    found = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, num_classes)
    if not are_distributions(found):
        raise ValueError("probabilities do not sum to 1")
    return found


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what a damaged file causes into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, SyntaxError) as error:
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


IMAGES = Codec(SUFFIX, read_parquet, write_parquet, ImageSet.take, concatenate)
