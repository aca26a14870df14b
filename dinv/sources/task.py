"""From a source to the labelled task's three image sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.images.image_set import ImageSet, batches
from dinv.images.resize import to_squares
from dinv.images.split import keyed_order, split_train_val
from dinv.sources.base import RawImages
from dinv.sources.params import DataParams
from dinv.sources.registry import SOURCES


@dataclass(frozen=True)
class Split:
    """Images of one split, read and resized as they are asked for."""

    raw: RawImages
    class_names: list[str]
    params: DataParams

    def __len__(self) -> int:
        return len(self.raw.ids)

    def load(self) -> ImageSet:
        """All of them in memory."""
        return self.take(range(len(self)))

    def chunks(self, size: int) -> Iterator[ImageSet]:
        """At most `size` at a time, in order; one empty chunk if there is none."""
        return (images for (images,) in self.chunks_at([self.params.resolution], size))

    def chunks_at(self, sides: Sequence[int], size: int) -> Iterator[list[ImageSet]]:
        """As `chunks`, the same images at each of these sides in pixels, straight from the originals."""
        for rows in batches(max(len(self), 1), size):
            yield self.take_at(sides, range(len(self))[rows])

    def take(self, rows: Sequence[int]) -> ImageSet:
        """Some rows; raises UserError for a broken image."""
        return self.take_at([self.params.resolution], rows)[0]

    def take_at(self, sides: Sequence[int], rows: Sequence[int]) -> list[ImageSet]:
        """Some rows at each of these sides; every original is decoded once. Raises UserError."""
        channels = 1 if self.params.mode == "L" else 3
        arrays = [np.zeros((len(rows), side, side, channels), np.uint8) for side in sides]
        for place, row in enumerate(rows):
            for array, pixels in zip(arrays, self._read(row, sides), strict=True):
                array[place] = pixels
        ids, labels = [self.raw.ids[row] for row in rows], self.raw.labels[list(rows)]
        return [ImageSet(array, labels, ids, self.class_names) for array in arrays]

    def _read(self, row: int, sides: Sequence[int]) -> list[NDArray[np.uint8]]:
        p = self.params
        try:
            return to_squares(self.raw.read(row), p.resolution, p.resize, p.mode, sides)
        except UserError as error:
            place = f"{p.root}: {self.raw.ids[row]}: " if self.raw.ids[row] not in str(error) else ""
            raise UserError(f"{place}{error}") from error


@dataclass(frozen=True)
class Task:
    """Disjoint splits: learned from, tuned on, and measured on."""

    train: Split
    val: Split
    test: Split


def load_task(params: DataParams) -> Task:
    """Choose the images that `params` names; raises UserError. Pixels are read later."""
    source = SOURCES[params.source](Path(params.root), params.seed)
    in_pool = params.num_val_per_class if source.val is None else 0
    train_rows, val_rows = split_train_val(
        source.train.labels,
        source.train.ids,
        source.class_names,
        params.num_per_class,
        in_pool,
        params.seed,
    )
    val = source.train.take(val_rows) if source.val is None else source.val
    num_test = params.num_test if params.num_test is not None else len(source.test.ids)
    if num_test > len(source.test.ids):
        raise UserError(
            f"data.num_test = {num_test}: {params.root} has {len(source.test.ids)} test images; "
            "lower it or set null for all"
        )
    test = source.test.take(sorted(keyed_order(source.test.ids, params.seed, "test")[:num_test]))
    return Task(*(Split(r, source.class_names, params) for r in (source.train.take(train_rows), val, test)))
