"""Random views of an image, two of which a contrastive encoder learns to recognise as one."""

import math

import torch
import torch.nn.functional as F

from models.pretraining.domain import Views


def random_views(images: torch.Tensor, views: Views) -> torch.Tensor:
    """One view of each image, [N, C, H, W] in [-1, 1]: moved, recoloured, a patch erased."""
    pixels = (warp(images, views) + 1) / 2
    return erase(recolour(pixels, views), views.erased).clamp(0, 1) * 2 - 1


def warp(images: torch.Tensor, views: Views) -> torch.Tensor:
    """Rotate, zoom, stretch, shift and, half of them, mirror."""
    n = len(images)
    angle = math.radians(views.rotation) * (2 * torch.rand(n) - 1)
    low, high = map(math.log, views.zoom)
    zoom = torch.exp(low + (high - low) * torch.rand(n))
    sx, sy = zoom * torch.exp(views.stretch * torch.randn(2, n))
    sx = sx * torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = sx * angle.cos(), -sy * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = sx * angle.sin(), sy * angle.cos()
    theta[:, :, 2] = views.shift * torch.randn(n, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    mode = "zeros" if views.border == "black" else "reflection"
    return F.grid_sample(images + 1, grid, padding_mode=mode, align_corners=False) - 1


def recolour(pixels: torch.Tensor, views: Views) -> torch.Tensor:
    """Change gamma, brightness and tint, then contrast about each image's mean."""
    n, channels = pixels.shape[:2]

    def factor(std: float, width: int = 1) -> torch.Tensor:
        return torch.exp(std * torch.randn(n, width, 1, 1))

    pixels = (pixels.clamp_min(0) + 1e-4) ** factor(views.gamma)
    pixels = pixels * factor(views.brightness) * factor(views.tint, channels)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return mean + (pixels - mean) * factor(views.contrast)


def erase(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """A square of 4 to 12 pixels of one random colour, in a share of the images."""
    n, channels, side = pixels.shape[:3]
    centre = side * torch.rand(2, n, 1, 1)
    half = (4 + 8 * torch.rand(n, 1, 1)) / 2 * (torch.rand(n, 1, 1) < share)
    along = torch.arange(side)
    inside = ((along[:, None] - centre[0]).abs() < half) & ((along - centre[1]).abs() < half)
    return torch.where(inside[:, None], torch.rand(n, channels, 1, 1), pixels)
