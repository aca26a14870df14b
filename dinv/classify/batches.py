"""Batches of labelled images, of one image set or of real and generated ones mixed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from dinv.classify.base import LabelledImages


class MixingParams(Protocol):
    """What of a learner's parameters decides its batches."""

    @property
    def batch_size(self) -> int:
        """Images per step."""
        ...

    @property
    def real_fraction(self) -> float:
        """Share of real images where there are two sources."""
        ...

    @property
    def mixing(self) -> Literal["batch", "replace"]:
        """batch: that share of each batch | replace: real images give way to those generated from them."""
        ...

    @property
    def synthetic_loss_weight(self) -> float:
        """Weight of a generated image's loss where there are two sources."""
        ...


def index_stream(n: int, batch_size: int, g: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of indices without end: every image once per epoch, in a fresh order each epoch."""
    pending = torch.randperm(n, generator=g)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(n, generator=g)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def batch_sizes(params: MixingParams, num_sources: int) -> list[int]:
    """Images per step from each source: all from one, or `real_fraction` of them from the first."""
    if num_sources == 1:
        return [params.batch_size]
    real = round(params.batch_size * params.real_fraction)
    real = min(max(real, 1), params.batch_size - 1)
    return [real, params.batch_size - real]


@dataclass(frozen=True)
class Batch:
    """uint8 [B, C, H, W], and targets float32 [B, M]: class probabilities times the image's loss weight."""

    images: torch.Tensor
    targets: torch.Tensor


def make_batches(
    sources: Sequence[LabelledImages], params: MixingParams, g: torch.Generator
) -> Iterator[Batch]:
    """Batches without end, on the CPU, as `params.mixing` says where there are two sources."""
    if len(sources) == 2 and params.mixing == "replace":
        return replaced_batches(sources[0], sources[1], params, g)
    return joined_batches(sources, params, g)


def joined_batches(
    sources: Sequence[LabelledImages], params: MixingParams, g: torch.Generator
) -> Iterator[Batch]:
    """So many images of each source in every batch, in random order: MixUp pairs neighbours."""
    weights = (1.0, params.synthetic_loss_weight)
    streams = [
        index_stream(len(s), n, g) for s, n in zip(sources, batch_sizes(params, len(sources)), strict=True)
    ]
    while True:
        rows = [next(stream) for stream in streams]
        images = torch.cat([s.images[r] for s, r in zip(sources, rows, strict=True)])
        targets = torch.cat([w * s.targets[r] for s, r, w in zip(sources, rows, weights, strict=False)])
        order = torch.randperm(len(images), generator=g) if len(sources) > 1 else slice(None)
        yield Batch(images[order], targets[order])


def replaced_batches(
    real: LabelledImages, synthetic: LabelledImages, params: MixingParams, g: torch.Generator
) -> Iterator[Batch]:
    """Real batches of which each image, with probability 1 - real_fraction, gives way to one generated
    from it (DA-Fusion, Trabucco et al. 2023). One that has none stays.
    """
    assert synthetic.origins is not None
    by_origin = synthetic.origins.argsort(stable=True)
    by_origin = by_origin[int((synthetic.origins < 0).sum()) :]
    counts = torch.bincount(synthetic.origins[by_origin], minlength=len(real))
    starts = counts.cumsum(0) - counts
    for rows in index_stream(len(real), params.batch_size, g):
        gives_way = torch.rand(len(rows), generator=g) >= params.real_fraction
        replaced = gives_way & (counts[rows] > 0)
        place = (torch.rand(len(rows), generator=g) * counts[rows]).long()
        chosen = by_origin[(starts[rows] + place)[replaced]]
        images, targets = real.images[rows], real.targets[rows]
        images[replaced] = synthetic.images[chosen]
        targets[replaced] = params.synthetic_loss_weight * synthetic.targets[chosen]
        yield Batch(images, targets)
