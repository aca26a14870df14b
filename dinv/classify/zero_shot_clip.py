"""The learner `zero_shot_clip`: CLIP and the names of classes (Radford et al. 2021, arXiv 2103.00020).

Nothing is trained and no image is looked at, so every arm and every seed gives the same classifier.
"""

from typing import Any

import torch

from dinv.classify.base import Advance, Fitted, Predict, TrainingSet
from dinv.classify.clip_based import (
    ClipNetwork,
    ClipParams,
    Templates,
    build_of,
    names_for,
    settings_of,
    text_predictor,
    text_weights,
)
from dinv.features.clip_text import ClipText


class ZeroShotParams(ClipParams):
    """The sentences whose features are averaged."""

    templates: Templates


class ZeroShotClip:
    """The learner."""

    Params = ZeroShotParams

    @staticmethod
    def settings(params: ZeroShotParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """CLIP, sentences and other names."""
        return settings_of(params, set())

    @staticmethod
    def num_units(params: ZeroShotParams) -> int:
        """One."""
        return 1

    @staticmethod
    def fit(
        data: TrainingSet, params: ZeroShotParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Features of the classes' sentences."""
        network = ClipNetwork.of(params.path)
        text = ClipText(network.location, device)
        weights = text_weights(text, names_for(data, params), params.templates)
        advance(1)
        return Fitted({"weights": weights, "scale": torch.tensor(text.scale)}, build_of(params, network), [])

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """softmax of exp(scale) cos(image, class)."""
        return text_predictor(tensors, build, device)
