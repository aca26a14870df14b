"""An image set on disk, read in slices."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.files import part_paths
from dinv.images.labelled import ImageSet, concatenate, join_probabilities
from dinv.images.mapped import MappedImageSet, map_pixels
from dinv.images.parquet import SUFFIX, damage_named, provenance_of, read_parquet, read_table, soft_labels


class ImageSetReader:
    """An image set on disk: memory holds labels, ids and what was asked for last.

    Attributes:
        labels: int64 [N].
        ids: N distinct strings.
        class_names: one name per class.
        shape: (H, W, C) of an image.

    Raises:
        UserError: a part is missing, truncated or not an image set.
    """

    def __init__(self, folder: Path):
        self._paths = part_paths(folder, SUFFIX, "image set")
        tables = [_read_columns(path, ["label", "id"]) for path in self._paths]
        self.ids: list[str] = [i for table, _ in tables for i in table["id"].to_pylist()]
        self.labels = np.concatenate([table["label"].to_numpy() for table, _ in tables]).astype(np.int64)
        self.class_names: list[str] = tables[0][1]["class_names"]
        self.shape: tuple[int, int, int] = tables[0][1]["shape"]
        self._groups = _row_groups(self._paths)
        self._starts = np.array([start for _, _, start in self._groups])
        self._cached: tuple[int, ImageSet] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def provenance(self) -> dict[str, list[Any]]:
        """Further columns, N values each."""
        return self._facts[0]

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """Soft labels, float32 [N, number of classes], if there are any."""
        return self._facts[1]

    @cached_property
    def _facts(self) -> tuple[dict[str, list[Any]], NDArray[np.float32] | None]:
        columns, soft, labels = [], [], []
        for path in self._paths:
            table, _ = _read_columns(path, [name for name in _column_names(path) if name != "image"])
            columns.append(provenance_of(table))
            with damage_named(path):
                soft.append(soft_labels(table, len(self.class_names)))
            labels.append(table["label"].to_numpy())
        provenance = {k: [v for part in columns for v in part[k]] for k in columns[0]}
        return provenance, join_probabilities(soft, labels, len(self.class_names))

    def take(self, rows: Sequence[int]) -> ImageSet:
        """Read the given rows, in the given order; consecutive ones are read fastest."""
        return concatenate(list(self.pieces(rows)))

    def pieces(self, rows: Sequence[int]) -> Iterator[ImageSet]:
        """The given rows, in order, as pieces of at most one row group, each freed before the next."""
        groups = np.searchsorted(self._starts, np.asarray(rows), side="right") - 1
        for group, members in groupby(zip(rows, groups.tolist(), strict=True), key=lambda pair: pair[1]):
            yield self._group(group).take([row - self._groups[group][2] for row, _ in members])

    def mapped(self, rows: Sequence[int] | None = None) -> MappedImageSet:
        """All images, or the given rows in their order, with pixels in a mapped file instead of in memory.

        Decoding holds one row group at a time.
        """
        wanted = range(len(self)) if rows is None else rows
        height, width, channels = self.shape
        pixels = map_pixels((p.images for p in self.pieces(wanted)), (len(wanted), channels, height, width))
        index = np.asarray(wanted, np.int64)
        return MappedImageSet(
            pixels,
            self.labels[index],
            [self.ids[i] for i in wanted],
            self.class_names,
            {k: [v[i] for i in wanted] for k, v in self.provenance.items()},
            None if self.probabilities is None else self.probabilities[index],
        )

    def _group(self, index: int) -> ImageSet:
        if self._cached is None or self._cached[0] != index:
            path, group, _ = self._groups[index]
            images = read_parquet(path, group)
            if images.images.shape[1:] != self.shape:
                found = images.images.shape[1:]
                raise UserError(f"{path}: images of {found}, in part 0 {self.shape}; run dvc checkout")
            self._cached = index, images
        return self._cached[1]


def _read_columns(path: Path, names: list[str]) -> tuple[Any, dict[str, Any]]:
    with damage_named(path):
        return read_table(path, columns=names)


def _column_names(path: Path) -> list[str]:
    with damage_named(path):
        return list(pq.read_schema(path).names)


def _row_groups(paths: Sequence[Path]) -> list[tuple[Path, int, int]]:
    """(file, row group, first row) of every row group that has rows, in order."""
    groups, start = [], 0
    for path in paths:
        metadata = pq.read_metadata(path)
        for i in range(metadata.num_row_groups):
            groups.append((path, i, start))
            start += metadata.row_group(i).num_rows
    return groups
