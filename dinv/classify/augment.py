"""Augmentation of whole uint8 batches on their device, one random draw per image."""

import torch
import torch.nn.functional as F


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
