"""The score of settings on validation images; that of cross-validation is in dinv.classify.folds."""

from pathlib import Path

import numpy as np

from dinv.classify.arms import REAL
from dinv.classify.folds import Fold
from dinv.images.image_set import ImageSetReader
from dinv.rng import derive_seed

VALIDATION = "data/real/val"


def validation(real: ImageSetReader, images: ImageSetReader, repeats: int, seed: int) -> list[Fold]:
    """All training images, measured on other ones: nothing is held out of them."""
    everything, rows = np.arange(len(real)), np.arange(len(images))
    seeds = [derive_seed(seed, "classifier", repeat) % 2**32 for repeat in range(repeats)]
    return [Fold(everything, images, rows, s) for s in seeds]


def has_small_validation(root: Path) -> bool:
    """Whether there are validation images, of no class more than there are training images of any."""
    counts = [np.bincount(ImageSetReader(root / f).labels) for f in (VALIDATION, REAL)]
    return bool(counts[0].sum() and counts[0].max() <= counts[1].min())
