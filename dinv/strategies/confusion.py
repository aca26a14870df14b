"""Which other class an image is edited to: any, or first those that a probe out of fold takes it for."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from dinv.errors import UserError
from dinv.images.image_set import ImageSetReader
from dinv.strategies.edits import other_class

NUM_FOLDS = 5


class OtherClasses:
    """Classes that variants of each image go to: all others in a random order, or the most confused first."""

    def __init__(self, real: ImageSetReader, seed: int, features: NDArray[np.float32] | None):
        """`features` float32 [N, D], of length 1, are what the probe knows; None: a random order."""
        self.real, self.seed = real, seed
        self._confused = None
        if features is not None:
            self._confused = confused_with(features, real.labels, real.ids, len(real.class_names))

    def target(self, row: int, variant: int) -> int:
        """Of a variant of an image; after all others the first again."""
        if self._confused is not None:
            others = self._confused[row]
            return int(others[variant % len(others)])
        own, source = int(self.real.labels[row]), self.real.ids[row]
        return other_class(len(self.real.class_names), own, self.seed, source, variant)


def confused_with(
    features: NDArray[np.float32], labels: NDArray[np.int64], ids: Sequence[str], num_classes: int
) -> NDArray[np.int64]:
    """The other classes of each image, the likeliest by a probe that has not seen it first: [N, M - 1].

    Logistic regression, as GeNIe's own head (C = 1). Of equally likely classes, and of those without images,
    the first in order is first.

    Args:
        features: float32 [N, D], of length 1.
        labels: int64 [N].
        ids: N distinct strings; folds depend on them, not on the order of images.
        num_classes: M.

    Raises:
        UserError: a class has one image only, so that no probe without it knows the class.
    """
    order = np.argsort(np.asarray(ids))
    x, y = features[order].astype(np.float64), labels[order]
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise UserError(
            "targets = 'confused': a class has one image only, and a probe needs two; add images, or set "
            "targets to all"
        )
    folds = StratifiedKFold(min(NUM_FOLDS, int(counts.min())))
    probe = LogisticRegression(C=1.0, max_iter=1000)
    p = np.full((len(y), num_classes), -1.0)
    p[:, classes] = cross_val_predict(probe, x, y, cv=folds, method="predict_proba")
    p[np.arange(len(y)), y] = -np.inf
    ranked = np.argsort(-np.round(p, 6), axis=1, kind="stable")[:, :-1]
    found = np.empty_like(ranked)
    found[order] = ranked
    return found
