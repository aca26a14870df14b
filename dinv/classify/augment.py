"""Augmentation of whole uint8 batches on their device, one random draw per image.

torchvision's transforms draw from torch's global generator, which the caller seeds.
"""

import torch
import torch.nn.functional as F
from torchvision.transforms import v2


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


def random_horizontal_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image with probability 1/2; [B, C, H, W]."""
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def auto_augment(images: torch.Tensor, policy: str) -> torch.Tensor:
    """AutoAugment (Cubuk et al. 2019), a sub-policy per image; policy cifar10, imagenet or svhn."""
    augment = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    return torch.stack([augment(image) for image in images])


def mix(
    images: torch.Tensor, targets: torch.Tensor, mixup_alpha: float, cutmix_alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of a batch with itself, by chance if both are on.

    An alpha of 0 is off. `targets`, float32 [B, M], are mixed with the images, so their sums may be loss
    weights. Returns float images in [0, 255] and targets.
    """
    kinds: list[torch.nn.Module] = []
    if mixup_alpha > 0:
        kinds.append(v2.MixUp(alpha=mixup_alpha))
    if cutmix_alpha > 0:
        kinds.append(v2.CutMix(alpha=cutmix_alpha))
    kind = kinds[int(torch.randint(len(kinds), ()))]
    mixed: tuple[torch.Tensor, torch.Tensor] = kind(images.float(), targets)
    return mixed
