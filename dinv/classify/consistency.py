"""Consistency training on images without labels: FixMatch (Sohn et al. 2020, arXiv 2001.07685).

A weakly augmented view of an image is classified; where the network is sure, its answer is the label of a
strongly augmented view of the same image.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torchvision.transforms import v2

from dinv.classify.augment import AugmentParams, weak_views
from dinv.classify.base import LabelledImages
from dinv.classify.batches import Indices
from dinv.rng import derive_seed, generator
from dinv.section import Fraction, NonNegativeFloat, PositiveInt


class ConsistencyParams(AugmentParams):
    """Generated images without their labels, besides what the batches have; by default there are none.

    Attributes:
        unlabelled_weight: lambda_u, weight of their loss; 0: off.
        unlabelled_ratio: mu, how many there are in a step for each image of the batch.
        unlabelled_threshold: tau, how sure of the weak view the network must be.
        strong_ops, strong_magnitude, strong_erasing: RandAugment and random erasing of the strong view.
    """

    unlabelled_weight: NonNegativeFloat = 0.0
    unlabelled_ratio: PositiveInt = 7
    unlabelled_threshold: Fraction = 0.95
    strong_ops: Annotated[int, Field(ge=0)] = 2
    strong_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    strong_erasing: Fraction = 1.0


class UnlabelledViews:
    """Weak and strong views of one image set, a batch per step, without end.

    Their random numbers are their own, keyed by `seed` and the step: labelled batches are the same with and
    without them.
    """

    def __init__(self, images: torch.Tensor, params: ConsistencyParams, batch_size: int, seed: int):
        self.images, self.params, self.seed = images, params, seed
        self.count = params.unlabelled_ratio * batch_size
        self._rows, self._step = Indices(len(images), generator(seed, "rows")), 0

    def take(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The next (weak, strong) views, uint8 [mu B, C, H, W] each; every image once per epoch."""
        images = self.images[self._rows.take(self.count)].to(device)
        g = generator(self.seed, "views", self._step)
        weak = weak_views(images, self.params, g)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
            torch.manual_seed(derive_seed(self.seed, "strong", self._step))
            strong = strong_views(weak_views(images, self.params, g), self.params)
        self._step += 1
        return weak, strong


def strong_views(images: torch.Tensor, params: ConsistencyParams) -> torch.Tensor:
    """RandAugment and a black rectangle, a draw for each of uint8 [B, C, H, W].

    The paper's RandAugment draws its magnitude, too, and its CutOut is a square of half the side.
    """
    steps: list[torch.nn.Module] = []
    if params.strong_ops > 0:
        steps.append(v2.RandAugment(params.strong_ops, params.strong_magnitude))
    if params.strong_erasing > 0:
        steps.append(v2.RandomErasing(params.strong_erasing))
    for step in steps:
        images = torch.stack([step(image) for image in images])
    return images


def unlabelled_views(
    sources: Sequence[LabelledImages], params: ConsistencyParams, batch_size: int, seed: int
) -> UnlabelledViews | None:
    """Of the generated images of an arm that mixes; None if it does not, or if their weight is 0."""
    if params.unlabelled_weight == 0 or len(sources) == 1:
        return None
    return UnlabelledViews(sources[1].images, params, batch_size, derive_seed(seed, "unlabelled"))


def consistency_loss(strong: torch.Tensor, weak: torch.Tensor, threshold: float) -> torch.Tensor:
    """(1 / mu B) sum of 1[max q >= tau] H(argmax q, p): equation 4.

    Args:
        strong: logits of the strong views, whose softmax is p, float [mu B, M].
        weak: logits of the weak views, whose softmax is q; no gradient goes there.
        threshold: tau.
    """
    confidence, label = weak.detach().softmax(1).max(1)
    losses = F.cross_entropy(strong, label, reduction="none")
    return (losses * (confidence >= threshold)).mean()
