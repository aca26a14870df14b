"""Labels that are likely to be wrong: confident learning (Northcutt, Jiang, Chuang 2021, arXiv 1911.00068).

A classifier gives every picture class probabilities, having been trained on others (out of fold). Equation
numbers are the paper's.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.heads import fit_logistic, logistic_scores
from dinv.classify.probe import standardised
from dinv.images.split import keyed_order

FOLDS = 5
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression
NUM_FITS = FOLDS * len(STRENGTHS)

Probabilities = NDArray[np.float64]


def folds(labels: NDArray[np.int64], ids: list[str]) -> NDArray[np.int64]:
    """A fold, 0 to 4, for each picture, int64 [N]; every class is spread evenly over them."""
    fold = np.zeros(len(labels), np.int64)
    rank: dict[int, int] = {}
    for row in keyed_order(ids, 0, "check folds"):
        label = int(labels[row])
        rank[label] = rank.get(label, -1) + 1
        fold[row] = rank[label] % FOLDS
    return fold


def out_of_fold(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    fold: NDArray[np.int64],
    num_classes: int,
    advance: Callable[[], object] = lambda: None,
) -> Probabilities:
    """Class probabilities of each picture by logistic regression on the other folds, float64 [N, M].

    C is that with the least log loss on the folds that were left out: probabilities that claim more than is
    known would make many labels look wrong. A class that the other folds lack has probability 0.
    """
    x, y = torch.from_numpy(features).double(), torch.from_numpy(labels)
    tried = [_with_c(x, y, torch.from_numpy(fold), num_classes, c, advance) for c in STRENGTHS]
    return min(tried, key=lambda p: float(-np.log(np.maximum(p[np.arange(len(p)), labels], 1e-9)).mean()))


def _with_c(
    x: torch.Tensor,
    y: torch.Tensor,
    fold: torch.Tensor,
    num_classes: int,
    c: float,
    advance: Callable[[], object],
) -> Probabilities:
    found = torch.zeros(len(y), num_classes, dtype=torch.float64)
    for k in range(FOLDS):
        held = fold == k
        if held.any() and len(y[~held].unique()) > 1:
            weight = torch.ones(int((~held).sum()), dtype=torch.float64)
            seen, scaling = standardised(x[~held], weight)
            head = fit_logistic(seen, y[~held], weight, c)
            scores = logistic_scores(head, (x[held] - scaling["mean"]) / scaling["std"])
            found[held.nonzero(), head["classes"][None]] = scores.softmax(1)
        advance()
    return found.numpy()


def self_confidence(p: Probabilities, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Thresholds t_j: the mean probability of class j over pictures with that label (eq. 2), [M].

    Infinite for a class without pictures.
    """
    return np.asarray(
        [p[labels == j, j].mean() if (labels == j).any() else np.inf for j in range(p.shape[1])]
    )


def confident_class(p: Probabilities, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most probable class among those with p_j >= t_j (eq. 1); -1 where there is none; int64 [N]."""
    above = p >= self_confidence(p, labels)
    return np.where(above.any(1), np.where(above, p, -1.0).argmax(1), -1)


def joint(p: Probabilities, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Estimated share of pictures with label i and true class j, [M, M] (eq. 3).

    Rows sum to the labels' shares.
    """
    m = p.shape[1]
    found = confident_class(p, labels)
    counts = np.zeros((m, m))
    np.add.at(counts, (labels[found >= 0], found[found >= 0]), 1)
    of_label = np.bincount(labels, minlength=m)
    empty = counts.sum(1) == 0
    counts[empty, empty] = 1  # nothing is known of these: as if all were right
    return counts / counts.sum(1, keepdims=True) * of_label[:, None] / len(labels)


def likely_wrong(p: Probabilities, labels: NDArray[np.int64], margin: float = 0.0) -> NDArray[np.int64]:
    """Rows that are likely to be mislabelled, the most doubtful first.

    Both of the paper's rules must hold ("C + NR"): the confident class is another one, and the picture is
    among the n Q_ij of label i with the largest p_j - p_i (prune by noise rate), for some class j. `margin`
    is what p_j - p_i of the confident class j must exceed besides.
    """
    rows = np.arange(len(labels))
    own = p[rows, labels]
    found = confident_class(p, labels)
    estimated = joint(p, labels)
    pruned = np.zeros(len(labels), bool)
    for i, j in zip(*np.nonzero(estimated), strict=True):
        if i != j:
            members = np.flatnonzero(labels == i)
            doubt = p[members, j] - p[members, i]
            worst = np.argsort(-doubt, kind="stable")[: round(len(labels) * estimated[i, j])]
            pruned[members[worst]] = True
    other = np.where(found >= 0, p[rows, np.maximum(found, 0)], 0) - own
    wrong = np.flatnonzero(pruned & (found >= 0) & (found != labels) & (other > margin))
    return wrong[np.argsort(own[wrong] - p[wrong].max(1), kind="stable")]
