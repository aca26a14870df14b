"""Accuracies from predicted and true classes."""

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
