"""Leave out generated images that classifiers of the real ones doubt (He et al. 2023 do so with CLIP)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.architectures import Classifier
from dinv.classify.train import predict_proba
from dinv.errors import UserError
from dinv.images.image_set import ImageSet


def label_confidence(
    classifiers: Sequence[Classifier], images: ImageSet, device: torch.device
) -> NDArray[np.float32]:
    """Probability of each image's own label, mean over the classifiers, float32 [N] in [0, 1]."""
    pixels = images.tensor().to(device)
    mean = torch.stack([predict_proba(c.to(device), pixels) for c in classifiers]).mean(0).cpu()
    return mean[torch.arange(len(images)), torch.from_numpy(images.labels)].numpy()


def keep_confident(images: ImageSet, confidence: NDArray[np.float32], min_confidence: float) -> ImageSet:
    """The images with at least that confidence; raises UserError if a class loses all of its own."""
    kept = images.take(np.flatnonzero(confidence >= min_confidence).tolist())
    lost = sorted(set(images.labels.tolist()) - set(kept.labels.tolist()))
    if lost:
        raise UserError(
            f"train.min_confidence = {min_confidence}: no generated image of class "
            f"{images.class_names[lost[0]]!r} is left; lower it"
        )
    return kept
