"""A folder of Parquet files that is one image set: part-00000.parquet, part-00001.parquet, ..."""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import pyarrow.parquet as pq

from dinv.files import new_folder, part_paths
from dinv.images.labelled import ImageSet, batches, concatenate
from dinv.images.parquet import (
    ROWS_PER_FILE,
    ROWS_PER_GROUP,
    SUFFIX,
    open_parquet,
    read_parquet,
    schema_of,
    to_table,
)


def save_image_set(images: ImageSet, folder: Path) -> None:
    """Write an image set as the whole content of a folder, in files of 1,000 rows."""
    rows = batches(max(len(images), 1), ROWS_PER_FILE)
    save_chunks((images.take(range(len(images))[r]) for r in rows), folder)


def save_chunks(chunks: Iterable[ImageSet], folder: Path) -> None:
    """Write chunks, made and freed one after the other, as the whole content of a folder."""
    with ImageSetWriter(folder) as writer:
        for chunk in chunks:
            writer.add(chunk)


class ImageSetWriter:
    """Writes an image set piece by piece, in files of 1,000 rows.

    Pieces of a multiple of 100 rows give the same bytes whatever their size. The files are made in a
    new folder that takes the old one's place when all is written: whoever is killed before that
    leaves the old set as it was, and no part of an older set stays.
    """

    def __init__(self, folder: Path):
        self._place = new_folder(folder)
        self._file: pq.ParquetWriter | None = None
        self._num_files = self._num_rows = 0

    def __enter__(self) -> "ImageSetWriter":
        self._folder = self._place.__enter__()
        return self

    def add(self, images: ImageSet) -> None:
        """Append images; a column's type is that in the first piece of its file."""
        for rows in batches(max(len(images), 1), ROWS_PER_GROUP):
            if self._file is None:
                path = self._folder / f"part-{self._num_files:05d}{SUFFIX}"
                self._file = open_parquet(path, schema_of(images))
            group = images.take(range(len(images))[rows])
            self._file.write_table(to_table(group, self._file.schema), row_group_size=ROWS_PER_GROUP)
            self._num_rows += len(group)
            if self._num_rows >= ROWS_PER_FILE:
                self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file, self._num_rows = None, 0
            self._num_files += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._place.__exit__(kind, error, trace)


def load_image_set(folder: Path) -> ImageSet:
    """Read every part of a folder, in order.

    Raises:
        UserError: a part is missing, truncated or not an image set.
    """
    return concatenate([read_parquet(path) for path in part_paths(folder, SUFFIX, "image set")])
