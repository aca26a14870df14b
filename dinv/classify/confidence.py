"""What classifiers of the real images say of generated ones: which to leave out, and their soft labels."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.base import Classifier
from dinv.errors import UserError


def class_confidence(
    classifiers: Sequence[Classifier], images: torch.Tensor, device: torch.device
) -> NDArray[np.float32]:
    """Class probabilities of uint8 images [N, C, H, W], mean over the classifiers, float32 [N, M]."""
    mean: NDArray[np.float32] = np.mean([c.predict_proba(images, device) for c in classifiers], axis=0)
    return mean


def label_confidence(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Probability of each image's own label, float32 [N], from those of all classes [N, M]."""
    confidence: NDArray[np.float32] = probabilities[np.arange(len(labels)), labels]
    return confidence


def confident_rows(
    confidence: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    min_confidence: float,
) -> NDArray[np.int64]:
    """Rows with at least that confidence (He et al. 2023 filter so with CLIP).

    Raises:
        UserError: a class loses all of its own.
    """
    kept = np.flatnonzero(confidence >= min_confidence)
    lost = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
    if lost:
        raise UserError(
            f"min_confidence = {min_confidence}: no generated image of class "
            f"{class_names[lost[0]]!r} is left; lower it"
        )
    return kept


def quantile_rows(
    confidence: NDArray[np.float32], labels: NDArray[np.int64], low: float, high: float
) -> NDArray[np.int64]:
    """Rows whose confidence is, within their class, neither among the lowest nor among the highest.

    Of a class's n images, ranked from 0 by confidence, those of rank floor(low n) to ceil(high n) - 1: one
    at least. Between a low and a middle quantile are images that the classifiers are unsure of, without those
    that they take for another class (after Deliberate Practice, Askari-Hemmat et al. 2025).
    """
    kept = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranked = rows[np.argsort(confidence[rows], kind="stable")]
        # Rounded: 0.7 times 10 is a little less than 7.
        first, end = round(low * len(rows), 9), round(high * len(rows), 9)
        kept.append(ranked[int(np.floor(first)) : int(np.ceil(end))])
    return np.sort(np.concatenate(kept))


def soft_targets(
    targets: NDArray[np.float32], probabilities: NDArray[np.float32], weight: float, temperature: float
) -> NDArray[np.float32]:
    """y' = (1 - w) y + w q with q_m proportional to p_m^(1 / T): softmax of the teacher's logits over T.

    Both [N, M] with rows that sum to 1 (distillation, Hinton et al. 2015, of which only the teacher is
    softened; LECF, He et al. 2023, so labels generated images).
    """
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float64) / temperature
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    softened = exponents / exponents.sum(1, keepdims=True)
    return ((1 - weight) * targets + weight * softened).astype(np.float32)
