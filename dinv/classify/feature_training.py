"""Steps of training on features of a frozen network: what learners that do so have in common."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from dinv.classify.base import Advance, LabelledImages, MixedParams
from dinv.classify.batches import make_batches
from dinv.classify.partners import MixPartners
from dinv.classify.training import ONLY_MIXED, curve_of, weighted_cross_entropy
from dinv.section import PositiveInt


class FeatureTrainingParams(MixedParams):
    """Steps, and how real and generated images are mixed."""

    num_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    mixing: Literal["batch", "replace"]

    @property
    def real_fraction_schedule(self) -> Literal["constant", "linear", "cosine"]:
        """The share of real images stays as it is."""
        return "constant"

    @property
    def real_fraction_end(self) -> float:
        """Not looked at."""
        return 1.0

    @property
    def finish_on_real(self) -> float:
        """No step learns from real images only."""
        return 0.0

    @property
    def mix_partners(self) -> MixPartners:
        """Nothing is mixed with another image."""
        return "any"


def only_mixed(mixes: bool) -> set[str]:
    """Parameters that have no effect."""
    return set() if mixes else ONLY_MIXED


def pick_views(features: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """One view of each image at random: [B, V, D] -> [B, D]."""
    n, num_views, _ = features.shape
    return features[torch.arange(n), torch.randint(num_views, (n,), generator=g)]


def train_on_features(
    logits: Callable[[torch.Tensor], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    views: Sequence[LabelledImages],
    params: FeatureTrainingParams,
    g: torch.Generator,
    device: torch.device,
    advance: Advance,
) -> list[tuple[int, float]]:
    """All steps; returns the curve of losses.

    Args:
        logits: [B, M] on the device, of features [B, D], by what the optimiser changes.
        optimizer: with one learning rate.
        learning_rate: of a step, counted from 0.
        views: image sets with features [N, V, D] for images.
        params: steps and batches.
        g: of batches and views.
        device: where `logits` computes.
        advance: called with the number of images that are done.
    """
    losses = []
    for step, batch in zip(range(params.num_steps), make_batches(views, params, g), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        found = logits(pick_views(batch.images, g).to(device))
        loss = weighted_cross_entropy(found, batch.targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        advance(params.batch_size)
    return curve_of(torch.stack(losses).cpu())
