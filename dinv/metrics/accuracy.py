"""Accuracies from predicted and true classes, and their summary over seeds."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, recall_score


def top1_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Share of correct predictions, in percent."""
    return 100 * float(accuracy_score(labels, predicted))


def balanced_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Mean of the per-class accuracies over the classes that occur in `labels`, in percent."""
    present = np.unique(labels)
    return 100 * float(recall_score(labels, predicted, labels=present, average="macro"))


def per_class_accuracy(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[int, float]:
    """Share of each class's images that are predicted right, in percent; classes that occur in `labels`."""
    present = np.unique(labels)
    recall = recall_score(labels, predicted, labels=present, average=None)
    return {int(k): 100 * float(r) for k, r in zip(present, recall, strict=True)}


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n - 1), standard error of the mean, and n.

    With n = 1 spread is unknown: std and stderr are None.
    """

    mean: float
    std: float | None
    stderr: float | None
    n: int

    def as_dict(self, digits: int = 3) -> dict[str, float | int | None]:
        """Rounded, for JSON."""
        return {k: round(v, digits) if isinstance(v, float) else v for k, v in asdict(self).items()}


def summarize(values: Sequence[float]) -> Summary:
    """Summarise one number per seed."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Summary(mean, None, None, 1)
    std = float(np.std(values, ddof=1))
    return Summary(mean, std, std / math.sqrt(n), n)


def difference(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summarise values - baseline, paired by seed (same seed: same initial weights and order)."""
    return summarize([v - b for v, b in zip(values, baseline, strict=True)])
