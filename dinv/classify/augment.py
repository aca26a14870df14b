"""Augmentation of whole uint8 batches on their device, one random draw per image.

torchvision's transforms draw from torch's global generator, which the caller seeds.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torchvision.transforms import v2

from dinv.classify.partners import MixPartners
from dinv.section import Fraction, NonNegativeFloat, Section


class AugmentParams(Section):
    """What is on is applied, in this order, to every image of every batch."""

    random_crop: bool
    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    auto_augment: Literal["cifar10", "imagenet", "svhn"] | None
    rand_augment_ops: Annotated[int, Field(ge=0)]
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)]
    trivial_augment: bool
    random_erasing: Fraction
    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    mix_partners: MixPartners = "any"

    @model_validator(mode="after")
    def _partners_are_mixed(self) -> "AugmentParams":
        if self.mix_partners != "any" and self.mixup_alpha + self.cutmix_alpha == 0:
            raise ValueError(
                f"mix_partners = {self.mix_partners!r} needs mixup_alpha or cutmix_alpha above 0"
            )
        return self


def augment(
    images: torch.Tensor,
    targets: torch.Tensor,
    params: AugmentParams,
    g: torch.Generator,
    partners: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch uint8 [B, C, H, W] and its targets float32 [B, M], augmented; only mixing changes targets.

    With `partners`, see Batch, the images that are there as partners only are gone afterwards.
    """
    images = weak_views(images, params, g)
    for transform in transforms(params):
        images = torch.stack([transform(image) for image in images])
    if params.mixup_alpha + params.cutmix_alpha > 0:
        return mix(images, targets, params.mixup_alpha, params.cutmix_alpha, partners)
    return images, targets


def weak_views(images: torch.Tensor, params: AugmentParams, g: torch.Generator) -> torch.Tensor:
    """Shifted, mirrored and turned, as far as these are on; [B, C, H, W]."""
    if params.random_crop:
        images = random_crop(images, g)
    if params.horizontal_flip:
        images = random_flip(images, g, dim=3)
    if params.vertical_flip:
        images = random_flip(images, g, dim=2)
    if params.quarter_turns:
        images = random_quarter_turns(images, g)
    return images


def transforms(params: AugmentParams) -> list[torch.nn.Module]:
    """torchvision's transforms of one image that are on.

    AutoAugment (Cubuk et al. 2019), RandAugment (Cubuk et al. 2020), TrivialAugment (Müller and Hutter
    2021), random erasing (Zhong et al. 2020).
    """
    found: list[torch.nn.Module] = []
    if params.auto_augment is not None:
        found.append(v2.AutoAugment(v2.AutoAugmentPolicy(params.auto_augment)))
    if params.rand_augment_ops > 0:
        found.append(v2.RandAugment(params.rand_augment_ops, params.rand_augment_magnitude))
    if params.trivial_augment:
        found.append(v2.TrivialAugmentWide())
    if params.random_erasing > 0:
        found.append(v2.RandomErasing(params.random_erasing))
    return found


def random_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Zero-pad by an eighth of the side and crop back at a random place; [B, C, H, W]."""
    b, _, h, w = images.shape
    pad = h // 8
    padded = F.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, b, 1), generator=generator).to(images.device)
    rows = (top + torch.arange(h, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(w, device=images.device))[:, None, None, :]
    batch = torch.arange(b, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def random_flip(images: torch.Tensor, generator: torch.Generator, dim: int = 3) -> torch.Tensor:
    """Mirror each image with probability 1/2; [B, C, H, W]. dim 3: left to right | 2: top to bottom."""
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(dim), images)


def random_quarter_turns(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn each square image by 0, 1, 2 or 3 right angles; [B, C, H, H]."""
    turns = torch.randint(4, (len(images),), generator=generator).to(images.device)
    turned = torch.stack([images.rot90(k, (2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(images), device=images.device)]


def mix(
    images: torch.Tensor,
    targets: torch.Tensor,
    mixup_alpha: float,
    cutmix_alpha: float,
    partners: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself, by chance if both are on.

    An alpha of 0 is off. `targets`, float32 [B, M], are mixed with the images, so their sums may be loss
    weights. `partners`, int64 [B], are rows of what each of the first B images is mixed with; None: the image
    before it. Returns float images in [0, 255] and targets.
    """
    kinds: list[torch.nn.Module] = []
    if mixup_alpha > 0:
        kinds.append(v2.MixUp(alpha=mixup_alpha))
    if cutmix_alpha > 0:
        kinds.append(v2.CutMix(alpha=cutmix_alpha))
    kind = kinds[int(torch.randint(len(kinds), ()))]
    if partners is None:
        mixed: tuple[torch.Tensor, torch.Tensor] = kind(images.float(), targets)
        return mixed
    # torchvision mixes every image with the one before it: there its partner is put.
    own = torch.arange(len(partners), device=images.device)
    order = torch.stack([partners.to(images.device), own], 1).flatten()
    images, targets = kind(images[order].float(), targets[order])
    return images[1::2], targets[1::2]
