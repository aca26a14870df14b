"""What a source of labelled images provides."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class RawImages:
    """Images as the source stores them, read one at a time.

    Attributes:
        ids: distinct, stable strings, e.g. the path below the root.
        labels: int64 [N].
        read: index -> PIL image; raises UserError for a broken one.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image]

    def take(self, rows: list[int]) -> "RawImages":
        """Return the given rows."""
        ids = [self.ids[i] for i in rows]
        return RawImages(ids, self.labels[rows], lambda i: self.read(rows[i]))


@dataclass(frozen=True)
class RawSplits:
    """A source's splits. `val` is None where the source has none: it is then carved from train."""

    class_names: list[str]
    train: RawImages
    val: RawImages | None
    test: RawImages


def array_images(split: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> RawImages:
    """Images uint8 [N, H, W] or [N, H, W, 3] in memory; their ids are split and position."""
    ids = [f"{split}/{i:05d}" for i in range(len(labels))]
    return RawImages(ids, labels, lambda i: Image.fromarray(images[i]))
