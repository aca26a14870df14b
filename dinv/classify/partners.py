"""Which image MixUp and CutMix mix an image with, where real and generated images are told apart.

Mixing an image with one that was made from it is DiffuseMix's idea (Islam et al. 2024).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from dinv.classify.base import Batch, LabelledImages
from dinv.errors import UserError

MixPartners = Literal["any", "other_kind", "own_variant"]


class Variants:
    """Generated images by the real image that they were made from.

    Attributes:
        counts: int64 [N], how many each of the N real images has.
    """

    def __init__(self, synthetic: LabelledImages, num_real: int):
        assert synthetic.origins is not None
        by_origin = synthetic.origins.argsort(stable=True)
        self._rows = by_origin[int((synthetic.origins < 0).sum()) :]
        self.counts = torch.bincount(synthetic.origins[self._rows], minlength=num_real)
        self._starts = self.counts.cumsum(0) - self.counts

    def choose(self, real_rows: torch.Tensor, wanted: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        """Row of one variant by chance, for each real row that is `wanted` (bool) and so has one."""
        place = (torch.rand(len(real_rows), generator=g) * self.counts[real_rows]).long()
        return self._rows[(self._starts[real_rows] + place)[wanted]]


@dataclass(frozen=True)
class Pairing:
    """Gives every image of a batch its partner.

    Attributes:
        kind: other_kind: an image of the batch, of the other kind | own_variant: for a real image one
            generated from it, for a generated one its real image; one that has none stays as it is.
        synthetic_loss_weight: that of generated partners.

    Raises:
        UserError: own_variant, and there is none.
    """

    real: LabelledImages
    synthetic: LabelledImages
    kind: MixPartners
    synthetic_loss_weight: float

    def __post_init__(self) -> None:
        if self.kind == "own_variant" and not self.variants.counts.any():
            raise UserError(
                "mix_partners = 'own_variant': no generated image names its real image; set any or other_kind"
            )

    @cached_property
    def variants(self) -> Variants:
        """The generated images by their real image."""
        return Variants(self.synthetic, len(self.real))

    def paired(self, batch: Batch, is_real: torch.Tensor, rows: torch.Tensor, g: torch.Generator) -> Batch:
        """The batch with partners; as it is, if it holds one kind only.

        `is_real` is bool [B]; `rows` int64 [B] are those of the real or of the generated images.
        """
        if self.kind == "any" or is_real.all() or not is_real.any():
            return batch
        if self.kind == "other_kind":
            return Batch(batch.images, batch.targets, other_kind(is_real, g))
        return self._with_variants(batch, is_real, rows, g)

    def _with_variants(
        self, batch: Batch, is_real: torch.Tensor, rows: torch.Tensor, g: torch.Generator
    ) -> Batch:
        """Partners come behind the batch: they need not be in it."""
        images, targets = batch.images.clone(), batch.targets.clone()
        assert self.synthetic.origins is not None
        origins = torch.full_like(rows, -1)
        origins[~is_real] = self.synthetic.origins[rows[~is_real]]
        has_origin = origins >= 0
        images[has_origin] = self.real.images[origins[has_origin]]
        targets[has_origin] = self.real.targets[origins[has_origin]]
        real_rows = rows.where(is_real, 0)
        has_variant = is_real & (self.variants.counts[real_rows] > 0)
        chosen = self.variants.choose(real_rows, has_variant, g)
        images[has_variant] = self.synthetic.images[chosen]
        targets[has_variant] = self.synthetic_loss_weight * self.synthetic.targets[chosen]
        n = len(rows)
        return Batch(
            torch.cat([batch.images, images]), torch.cat([batch.targets, targets]), torch.arange(n, 2 * n)
        )


def other_kind(is_real: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """For each of a batch's images one of the other kind by chance, int64 [B]; there are both kinds."""
    partners = torch.empty(len(is_real), dtype=torch.int64)
    for kind in (is_real, ~is_real):
        others = torch.nonzero(~kind).flatten()
        partners[kind] = others[torch.randint(len(others), (int(kind.sum()),), generator=g)]
    return partners
