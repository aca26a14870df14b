"""The learner `tip_adapter_f`: Tip-Adapter with trained keys (Zhang et al. 2022, arXiv 2207.09519)."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dinv.classify.base import Advance, Fitted, Predict, TrainingSet
from dinv.classify.clip_based import ClipNetwork, build_of, predictor, settings_of
from dinv.classify.cross_validation import NUM_FOLDS, kept_images, splits
from dinv.classify.feature_training import FeatureTrainingParams, only_mixed, train_on_features
from dinv.classify.probe import weighty
from dinv.classify.tip_adapter import (
    Cache,
    HeldOut,
    TipAdapterParams,
    cache_from,
    material_for,
    tensors_of,
    tuned,
)
from dinv.rng import generator
from dinv.section import NonNegativeFloat, PositiveFloat


class TipAdapterFParams(TipAdapterParams, FeatureTrainingParams):
    """How the keys are trained: AdamW, half a cosine from lr to 0."""

    lr: PositiveFloat
    adam_eps: PositiveFloat
    weight_decay: NonNegativeFloat


class TipAdapterF:
    """The learner."""

    Params = TipAdapterFParams

    @staticmethod
    def settings(params: TipAdapterFParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """CLIP, sentences, views, cache and training; of mixing only where there is something to mix."""
        return settings_of(params, only_mixed(mixes))

    @staticmethod
    def num_units(params: TipAdapterFParams) -> int:
        """Images in all steps together, those of held-out trainings too."""
        return params.num_steps * params.batch_size * (1 + (NUM_FOLDS if params.search else 0))

    @staticmethod
    def fit(
        data: TrainingSet, params: TipAdapterFParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Keys trained at `alpha` and `beta`, which are then searched for with keys that were trained without
        the images that are held out. Batches and views follow from `seed`.
        """
        data, network = weighty(data, params.real_fraction), ClipNetwork.of(params.path)
        material = material_for(data, params, network, seed, device)
        cache, curve = train_keys(material.cache(params), material.data, params, seed, device, advance)
        if params.search:
            labels = data.sources[0].targets.argmax(1)
            held_out = []
            for split in splits(data):
                kept = kept_images(material.data, split)
                known, _ = train_keys(material.cache(params, kept), kept, params, seed, device, advance)
                held_out.append(HeldOut(known, material.plain[split.scored], labels[split.scored]))
            cache = tuned(cache, held_out)
        return Fitted(tensors_of(cache), build_of(params, network), curve)

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """softmax of the text's and the cache's logits."""
        return predictor(build, device, cache_from(tensors).logits)


def learning_rate(params: TipAdapterFParams, step: int) -> float:
    """Half a cosine from lr to 0."""
    return params.lr * 0.5 * (1 + math.cos(math.pi * step / params.num_steps))


def train_keys(
    cache: Cache,
    views: TrainingSet,
    params: TipAdapterFParams,
    seed: int,
    device: torch.device,
    advance: Advance,
) -> tuple[Cache, list[tuple[int, float]]]:
    """The cache with trained keys, and the curve of losses; `views` have features [N, V, D] for images."""
    g = generator(seed, "train")
    keys = nn.Parameter(cache.keys.clone().to(device))
    learning = replace(cache, keys=keys, values=cache.values.to(device), weights=cache.weights.to(device))
    optimizer = torch.optim.AdamW([keys], params.lr, eps=params.adam_eps, weight_decay=params.weight_decay)
    rate = partial(learning_rate, params)
    curve = train_on_features(learning.logits, optimizer, rate, views.sources, params, g, device, advance)
    return replace(cache, keys=keys.detach().cpu()), curve
