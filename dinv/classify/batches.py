"""Batches of labelled images, of one image set or of real and generated ones mixed."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch

from dinv.classify.base import Batch, LabelledImages
from dinv.classify.partners import MixPartners, Pairing


class MixingParams(Protocol):
    """What of a learner's parameters decides its batches."""

    @property
    def num_steps(self) -> int:
        """How many batches are learned from."""
        ...

    @property
    def batch_size(self) -> int:
        """Images per step."""
        ...

    @property
    def real_fraction(self) -> float:
        """Share of real images where there are two sources, in [0, 1]; under a schedule, at its start."""
        ...

    @property
    def real_fraction_schedule(self) -> Literal["constant", "linear", "cosine"]:
        """How the share goes from `real_fraction` to `real_fraction_end`."""
        ...

    @property
    def real_fraction_end(self) -> float:
        """The share at the end of the schedule, in [0, 1]; not looked at if constant."""
        ...

    @property
    def finish_on_real(self) -> float:
        """Share of the steps, the last ones, that learn from real images only, in [0, 1)."""
        ...

    @property
    def mixing(self) -> Literal["batch", "replace"]:
        """batch: that share of each batch | replace: real images give way to those generated from them."""
        ...

    @property
    def synthetic_loss_weight(self) -> float:
        """Weight of a generated image's loss where there are two sources."""
        ...

    @property
    def mix_partners(self) -> MixPartners:
        """What MixUp and CutMix mix an image with where there are two sources."""
        ...


class Indices:
    """Rows of n images without end: every image once per epoch, in a fresh order each epoch."""

    def __init__(self, n: int, g: torch.Generator):
        self._n, self._g = n, g
        self._pending = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> torch.Tensor:
        """The next rows, int64 [count]."""
        while len(self._pending) < count:
            self._pending = torch.cat([self._pending, torch.randperm(self._n, generator=self._g)])
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken


def index_stream(n: int, batch_size: int, g: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of indices without end."""
    indices = Indices(n, g)
    while True:
        yield indices.take(batch_size)


def real_share(params: MixingParams, step: int) -> float:
    """Share of real images at a step, counted from 0.

    f(p) = f_0 + p (f_1 - f_0) if linear, f_1 + (f_0 - f_1) (1 + cos(pi p)) / 2 if cosine, where p goes from 0
    to 1 over the steps before the last ones that `finish_on_real` keeps for real images (a curriculum over
    training as in DisCL, Liang et al. 2024; pre-training on generated images as in He et al. 2023).
    """
    last = round(params.finish_on_real * params.num_steps)
    if last > 0 and step >= params.num_steps - last:
        return 1.0
    start, end = params.real_fraction, params.real_fraction_end
    p = min(1.0, step / max(1, params.num_steps - last - 1))
    if params.real_fraction_schedule == "linear":
        return start + p * (end - start)
    if params.real_fraction_schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * p)) / 2
    return start


def batch_sizes(params: MixingParams, num_sources: int, step: int = 0) -> list[int]:
    """Images of a step from each source: all from one, or the share of real ones from the first.

    Unless the share is 0 or 1, there is one image of each at least.
    """
    if num_sources == 1:
        return [params.batch_size]
    share = real_share(params, step)
    real = round(params.batch_size * share)
    if 0 < share < 1:
        real = min(max(real, 1), params.batch_size - 1)
    return [real, params.batch_size - real]


def make_batches(
    sources: Sequence[LabelledImages], params: MixingParams, g: torch.Generator
) -> Iterator[Batch]:
    """Batches without end, on the CPU, as `params.mixing` says where there are two sources.

    A constant share of 1 is training on the real images only, with the same random numbers.
    """
    if params.real_fraction == 1 and params.real_fraction_schedule == "constant":
        sources = sources[:1]
    if len(sources) == 1:
        return plain_batches(sources[0], params, g)
    real, synthetic = sources
    pairing = Pairing(real, synthetic, params.mix_partners, params.synthetic_loss_weight)
    mixed = replaced_batches if params.mixing == "replace" else joined_batches
    return mixed(pairing, params, g)


def plain_batches(images: LabelledImages, params: MixingParams, g: torch.Generator) -> Iterator[Batch]:
    """Batches of one image set."""
    for rows in index_stream(len(images), params.batch_size, g):
        yield Batch(images.images[rows], images.targets[rows])


def joined_batches(pairing: Pairing, params: MixingParams, g: torch.Generator) -> Iterator[Batch]:
    """So many images of each source in every batch, in random order: MixUp pairs neighbours."""
    real, synthetic = pairing.real, pairing.synthetic
    of_real, of_synthetic = Indices(len(real), g), Indices(len(synthetic), g)
    for step in itertools.count():
        count, count_synthetic = batch_sizes(params, 2, step)
        rows, made = of_real.take(count), of_synthetic.take(count_synthetic)
        images = torch.cat([real.images[rows], synthetic.images[made]])
        targets = torch.cat([real.targets[rows], params.synthetic_loss_weight * synthetic.targets[made]])
        order = torch.randperm(len(images), generator=g)
        yield pairing.paired(
            Batch(images[order], targets[order]), order < count, torch.cat([rows, made])[order], g
        )


def replaced_batches(pairing: Pairing, params: MixingParams, g: torch.Generator) -> Iterator[Batch]:
    """Real batches of which each image, with probability 1 - share of real images, gives way to one generated
    from it (DA-Fusion, Trabucco et al. 2023). One that has none stays.
    """
    real, synthetic, variants = pairing.real, pairing.synthetic, pairing.variants
    for step, rows in enumerate(index_stream(len(real), params.batch_size, g)):
        gives_way = torch.rand(len(rows), generator=g) >= real_share(params, step)
        replaced = gives_way & (variants.counts[rows] > 0)
        chosen = variants.choose(rows, replaced, g)
        images, targets = real.images[rows], real.targets[rows]
        images[replaced] = synthetic.images[chosen]
        targets[replaced] = params.synthetic_loss_weight * synthetic.targets[chosen]
        of_kind = rows.clone()
        of_kind[replaced] = chosen
        yield pairing.paired(Batch(images, targets), ~replaced, of_kind, g)
