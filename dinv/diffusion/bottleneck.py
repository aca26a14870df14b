"""Noise on the UNet's bottleneck, as DreamDA (Fu et al. 2024, arXiv 2403.12803) perturbs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Noise = Callable[[int, torch.Size], torch.Tensor]


@contextmanager
def bottleneck_noise(unet: Any, num_images: int, scale: float, noise: Noise) -> Iterator[None]:
    """While this is open, every pass adds scale * std(h) * xi to the output h of the UNet's mid block.

    std(h) is over one image's features, so that `scale` means the same in every UNet.

    Args:
        unet: diffusers' UNet2DConditionModel.
        num_images: B; a pass may hold several conditions of the same images, [k B, ...].
        scale: in units of the features' standard deviation.
        noise: (which pass, shape [B, C, h, w]) -> xi, N(0, I), anew for every pass.
    """
    passes = 0

    def add(module: torch.nn.Module, args: Any, h: torch.Tensor) -> torch.Tensor:
        nonlocal passes
        first, passes = passes, passes + len(h) // num_images
        shape = torch.Size((num_images, *h.shape[1:]))
        xi = torch.cat([noise(i, shape) for i in range(first, passes)]).to(h)
        return h + scale * h.flatten(1).std(1).view(-1, 1, 1, 1) * xi

    handle = unet.mid_block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
