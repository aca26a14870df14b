"""CLIP as a zero-shot classifier (Radford et al. 2021, arXiv 2103.00020): images against prompts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dinv.features.clip_text import ClipText
from dinv.features.extractors import load_extractor


class ZeroShot:
    """A prompt per class.

    Raises:
        UserError: the folder is no CLIP model with both encoders, or a prompt is too long for it.
    """

    def __init__(self, location: Path, prompts: Sequence[str], device: torch.device):
        text = ClipText(location, device)
        self._texts, self._scale = text.features(prompts), text.scale
        self._extract = load_extractor("clip", location, device)

    def probabilities(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """softmax over classes of exp(scale) cos(image, prompt): uint8 [B, H, W, C] -> float32 [B, M]."""
        features = F.normalize(self._extract(images), dim=1)
        return (self._scale * features @ self._texts.T).softmax(1)
