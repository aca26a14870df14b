"""DiffAugment (Zhao et al. 2020, arXiv 2006.10738): differentiable, of real and made images alike."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def diff_augment(images: torch.Tensor, policy: Sequence[str], g: torch.Generator) -> torch.Tensor:
    """T(x): the named augmentations in turn, each image's own; gradients flow through.

    Args:
        images: float32 in [-1, 1], [B, C, H, W].
        policy: of `color`, `translation` and `cutout`.
        g: a CPU generator; equal states give equal transformations, whatever the images.
    """
    for name in policy:
        images = AUGMENTATIONS[name](images, g)
    return images


def color(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Brightness by up to 0.5 either way, saturation by a factor of 0 to 2, contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = _uniform(x, 3, g)
    x = x + brightness - 0.5
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * (2 * saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + 0.5) + mean


def translation(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A shift by up to an eighth of the side either way, by whole pixels; what comes in is 0."""
    side = x.shape[2]
    most = max(1, round(side / 8))
    dx, dy = (_integers(x, -most, most, g) for _ in range(2))
    padded = F.pad(x, (most,) * 4)
    place = torch.arange(side, device=x.device)
    rows, columns = ((place + most + d[:, None]) for d in (dy, dx))
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """A square of half the side becomes 0; its centre is anywhere, so part of it may lie outside."""
    side = x.shape[2]
    size, place = side // 2, torch.arange(side, device=x.device)
    offsets = [place - _integers(x, -(size // 2), side - size // 2, g)[:, None] for _ in range(2)]
    rows, columns = ((offset >= 0) & (offset < size) for offset in offsets)
    return x * ~(rows[:, None, :, None] & columns[:, None, None, :])


AUGMENTATIONS: dict[str, Augment] = {"color": color, "translation": translation, "cutout": cutout}


def _uniform(x: torch.Tensor, n: int, g: torch.Generator) -> torch.Tensor:
    return torch.rand((n, len(x), 1, 1, 1), generator=g).to(x.device)


def _integers(x: torch.Tensor, low: int, high: int, g: torch.Generator) -> torch.Tensor:
    return torch.randint(low, high + 1, (len(x),), generator=g).to(x.device)
