"""The learner `tip_adapter`: a cache of training images beside CLIP's text weights, nothing trained (Zhang et
al. 2022, "Tip-Adapter", ECCV, arXiv 2207.09519).

    logits = s f W^T + alpha exp(-beta (1 - f F^T)) L

f is an image's feature, W the text weights, s CLIP's scale (100 in its own models), F the features of
training images (keys) and L their class probabilities times their weight (values).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from dinv.classify.base import Advance, Fitted, MixedParams, Predict, TrainingSet
from dinv.classify.clip_based import (
    ClipNetwork,
    ClipParams,
    Templates,
    build_of,
    image_features,
    names_for,
    predictor,
    settings_of,
    text_weights,
)
from dinv.classify.cross_validation import kept_images, scores, splits
from dinv.classify.probe import ONLY_MIXED, image_weights, weighty
from dinv.classify.views import ViewParams, viewed
from dinv.features.clip_text import ClipText
from dinv.section import NonNegativeFloat, PositiveFloat

# What the authors' code tries.
ALPHAS = tuple(0.1 + i * (10 - 0.1) / 20 for i in range(20))
BETAS = tuple(0.1 + i * (12 - 0.1) / 200 for i in range(200))


class TipAdapterParams(ClipParams, MixedParams, ViewParams):
    """The sentences, the weight and the sharpness of the cache, whether these two are searched for."""

    templates: Templates
    alpha: NonNegativeFloat
    beta: PositiveFloat
    search: bool


@dataclass(frozen=True)
class Cache:
    """A classifier of image features: W float32 [M, D], s, keys [N, D] of length 1, values [N, M]."""

    weights: torch.Tensor
    scale: float
    keys: torch.Tensor
    values: torch.Tensor
    alpha: float
    beta: float

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """[B, M] of features [B, D] of length 1."""
        return self.scale * features @ self.weights.T + self.alpha * self.votes(features, self.beta)

    def votes(self, features: torch.Tensor, beta: float) -> torch.Tensor:
        """exp(-beta (1 - f F^T)) L, [B, M]."""
        return torch.exp(-beta * (1 - features @ self.keys.T)) @ self.values


def cache_of(
    data: TrainingSet, views: Sequence[torch.Tensor], weights: torch.Tensor, scale: float, params: Any
) -> Cache:
    """Keys are means of features of views [N, V, D], again of length 1."""
    keys = torch.cat([F.normalize(of_source.mean(1), dim=1) for of_source in views])
    targets = torch.cat([source.targets for source in data.sources])
    values = targets * image_weights(data, params).float()[:, None]
    return Cache(weights, scale, keys, values, params.alpha, params.beta)


@dataclass(frozen=True)
class HeldOut:
    """Features float32 [N, D] and labels int64 [N] of images that a cache does not know."""

    cache: Cache
    features: torch.Tensor
    labels: torch.Tensor


def searched(held_out: Sequence[HeldOut]) -> tuple[float, float]:
    """Alpha and beta with most right answers over all held-out images; of equals the likeliest."""
    alphas = torch.tensor(ALPHAS)[:, None, None]
    right = torch.zeros(len(BETAS), len(ALPHAS), dtype=torch.int64)
    likelihood = torch.zeros(len(BETAS), len(ALPHAS), dtype=torch.float64)
    for one in held_out:
        text = one.cache.scale * one.features @ one.cache.weights.T
        for row, beta in enumerate(BETAS):
            logits = text + alphas * one.cache.votes(one.features, beta)
            more_right, more_likelihood = scores(logits, one.labels)
            right[row] += more_right
            likelihood[row] += more_likelihood
    row, column = divmod(int(likelihood.where(right == right.max(), -torch.inf).argmax()), len(ALPHAS))
    return ALPHAS[column], BETAS[row]


def tuned(cache: Cache, held_out: Sequence[HeldOut]) -> Cache:
    """The cache with alpha and beta as searched; as it is if nothing could be held out."""
    if not held_out:
        print(f"no image can be held out: alpha = {cache.alpha} and beta = {cache.beta} are not searched for")
        return cache
    alpha, beta = searched(held_out)
    return replace(cache, alpha=alpha, beta=beta)


@dataclass(frozen=True)
class Material:
    """What a cache is made of.

    Attributes:
        data: features of views, [N, V, D], in place of images.
        plain: features [N, D] of the images of the first source as they are.
        weights, scale: of the texts.
    """

    data: TrainingSet
    plain: torch.Tensor
    weights: torch.Tensor
    scale: float

    def cache(self, params: Any, data: TrainingSet | None = None) -> Cache:
        """Of all images, or of some."""
        data = data or self.data
        return cache_of(data, [s.images for s in data.sources], self.weights, self.scale, params)


def material_for(
    data: TrainingSet, params: Any, network: ClipNetwork, seed: int, device: torch.device
) -> Material:
    """Features of views, of images and of texts."""
    text = ClipText(network.location, device)
    views = viewed(data.sources, network, params, seed, device)
    return Material(
        TrainingSet(views, data.real, data.class_names),
        image_features(data.sources[0].images, network, device),
        text_weights(text, names_for(data, params), params.templates),
        text.scale,
    )


class TipAdapter:
    """The learner."""

    Params = TipAdapterParams

    @staticmethod
    def settings(params: TipAdapterParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """CLIP, sentences, views, cache; of mixing only where there is something to mix."""
        return settings_of(params, set() if mixes else ONLY_MIXED)

    @staticmethod
    def num_units(params: TipAdapterParams) -> int:
        """One."""
        return 1

    @staticmethod
    def fit(
        data: TrainingSet, params: TipAdapterParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Features of the views that follow from `seed`; alpha and beta by images held out in turn."""
        data, network = weighty(data, params.real_fraction), ClipNetwork.of(params.path)
        material = material_for(data, params, network, seed, device)
        cache = material.cache(params)
        if params.search:
            labels = data.sources[0].targets.argmax(1)
            held_out = []
            for split in splits(data):
                known = material.cache(params, kept_images(material.data, split))
                held_out.append(HeldOut(known, material.plain[split.scored], labels[split.scored]))
            cache = tuned(cache, held_out)
        advance(1)
        return Fitted(tensors_of(cache), build_of(params, network), [])

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """softmax of the text's and the cache's logits."""
        return predictor(build, device, cache_from(tensors).logits)


def tensors_of(cache: Cache) -> dict[str, torch.Tensor]:
    """A cache as tensors to be stored."""
    numbers = {
        name: torch.tensor(getattr(cache, name), dtype=torch.float64) for name in ("scale", "alpha", "beta")
    }
    return {"weights": cache.weights, "keys": cache.keys, "values": cache.values, **numbers}


def cache_from(tensors: dict[str, torch.Tensor]) -> Cache:
    """A stored cache."""
    scale, alpha, beta = (float(tensors[name]) for name in ("scale", "alpha", "beta"))
    return Cache(tensors["weights"], scale, tensors["keys"], tensors["values"], alpha, beta)
