"""Leave out generated images that classifiers of the real ones doubt (He et al. 2023 do so with CLIP)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.store import StoredClassifier
from dinv.errors import UserError


def label_confidence(
    classifiers: Sequence[StoredClassifier],
    images: torch.Tensor,
    labels: NDArray[np.int64],
    device: torch.device,
) -> NDArray[np.float32]:
    """Probability of each image's own label, mean over the classifiers, float32 [N] in [0, 1].

    `images` are uint8 [N, C, H, W].
    """
    mean = np.mean([c.predict_proba(images, device) for c in classifiers], axis=0)
    confidence: NDArray[np.float32] = mean[np.arange(len(labels)), labels]
    return confidence


def confident_rows(
    confidence: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    min_confidence: float,
) -> NDArray[np.int64]:
    """Rows with at least that confidence; raises UserError if a class loses all of its own."""
    kept = np.flatnonzero(confidence >= min_confidence)
    lost = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
    if lost:
        raise UserError(
            f"min_confidence = {min_confidence}: no generated image of class "
            f"{class_names[lost[0]]!r} is left; lower it"
        )
    return kept
