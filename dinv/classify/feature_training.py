"""Steps of training on features of a frozen network: what learners that do so have in common."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from dinv.classify.base import MixedParams
from dinv.classify.partners import MixPartners
from dinv.classify.training import ONLY_MIXED
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
