"""A small class-conditional GAN: residual blocks, conditional batch norm, projection discriminator.

The generator of SNGAN and the discriminator of Miyato and Koyama 2018 (arXiv 1802.05637), with spectral norm.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

FIRST_SIDE = 4


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift are the class's."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Embedding(num_classes, channels), nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], labels int64 [B]."""
        return self.norm(x) * self.scale(y)[:, :, None, None] + self.shift(y)[:, :, None, None]


class UpBlock(nn.Module):
    """Doubles the side."""

    def __init__(self, c_in: int, c_out: int, num_classes: int):
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(c, num_classes) for c in (c_in, c_out))
        self.convs = nn.ModuleList(nn.Conv2d(c, c_out, 3, padding=1) for c in (c_in, c_out))
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C', 2H, 2W]."""
        h = self.convs[0](F.interpolate(F.relu(self.norms[0](x, y)), scale_factor=2))
        return F.interpolate(self.skip(x), scale_factor=2) + self.convs[1](F.relu(self.norms[1](h, y)))


class Generator(nn.Module):
    """G(z, y): latents float32 [B, Z] and labels int64 [B] -> images in [-1, 1], [B, C, H, H]."""

    def __init__(self, latent_size: int, width: int, num_classes: int, side: int, num_channels: int):
        super().__init__()
        self.latent_size, self.width, self.side, self.num_channels = latent_size, width, side, num_channels
        c = channels(width, side)[::-1]  # from 4 pixels on
        self.first = nn.Linear(latent_size, c[0] * FIRST_SIDE**2)
        self.blocks = nn.ModuleList(UpBlock(c_in, c_out, num_classes) for c_in, c_out in pairwise(c))
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, num_channels, 3, padding=1)

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Images."""
        x = self.first(z).view(len(z), -1, FIRST_SIDE, FIRST_SIDE)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class DownBlock(nn.Module):
    """Halves the side."""

    def __init__(self, c_in: int, c_out: int, first: bool):
        super().__init__()
        self.first = first
        self.convs = nn.ModuleList(spectral_norm(nn.Conv2d(c, c_out, 3, padding=1)) for c in (c_in, c_out))
        self.skip = spectral_norm(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W] -> [B, C', H/2, W/2]."""
        h = self.convs[0](x if self.first else F.relu(x))
        return F.avg_pool2d(self.convs[1](F.relu(h)) + self.skip(x), 2)


class Discriminator(nn.Module):
    """D(x, y) = w phi(x) + b + <v_y, phi(x)>, the projection of phi on the class's vector: [B]."""

    def __init__(self, width: int, num_classes: int, side: int, num_channels: int):
        super().__init__()
        c = [num_channels, *channels(width, side)[:-1]]
        self.blocks = nn.Sequential(
            *(DownBlock(c_in, c_out, i == 0) for i, (c_in, c_out) in enumerate(pairwise(c)))
        )
        self.linear = spectral_norm(nn.Linear(c[-1], 1))
        self.vectors = spectral_norm(nn.Embedding(num_classes, c[-1]))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """phi(x): images in [-1, 1] -> [B, F], summed over places."""
        return F.relu(self.blocks(x)).sum((2, 3))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """How real images of a class look."""
        phi = self.features(x)
        return self.linear(phi)[:, 0] + (self.vectors(y) * phi).sum(1)


def channels(width: int, side: int) -> list[int]:
    """`width` at full size, twice as many at half of it, ..., 8 times at most; down to 4 pixels."""
    num_halvings = int(math.log2(side // FIRST_SIDE))
    return [width * min(2**i, 8) for i in range(num_halvings + 1)]
