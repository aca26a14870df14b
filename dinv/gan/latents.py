"""GAN inversion: z* = argmin_z || G(z, y) - x ||^2 for every image, from the best of several random starts.

The protocol of Zhao and Bilen 2022 (arXiv 2204.07513): one latent per training image under its own label.
"""

from collections.abc import Callable, Sequence

import torch

from dinv.gan.networks import Generator
from dinv.rng import generator
from dinv.section import PositiveFloat, PositiveInt, Section, Seed


class LatentSettings(Section):
    """How latents are found; `num_starts` draws of N(0, I) are compared first."""

    num_inversion_steps: PositiveInt
    inversion_lr: PositiveFloat
    num_starts: PositiveInt
    seed: Seed


def inversion_error(G: Generator, z: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of G(z, y) and images x in [-1, 1], [B, C, H, H], per image: [B]."""
    return (G(z, y) - x).square().flatten(1).mean(1)


@torch.no_grad()
def starts(
    G: Generator, x: torch.Tensor, y: torch.Tensor, ids: Sequence[str], settings: LatentSettings
) -> torch.Tensor:
    """The best of each image's own draws, float32 [B, Z]."""
    streams = [generator(settings.seed, "gan-start", image_id) for image_id in ids]
    best, least = torch.empty(0), torch.full((len(ids),), torch.inf, device=x.device)
    for _ in range(settings.num_starts):
        z = torch.stack([torch.randn(G.latent_size, generator=g) for g in streams]).to(x.device)
        error = inversion_error(G, z, y, x)
        best = torch.where((error < least)[:, None], z, best) if len(best) else z
        least = torch.minimum(error, least)
    return best


def invert_latents(
    G: Generator,
    x: torch.Tensor,
    y: torch.Tensor,
    ids: Sequence[str],
    settings: LatentSettings,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents float32 [B, Z] of images x, labelled y, and their errors [B]; G is frozen and in eval mode.

    Adam's steps are per element and the loss is a sum, so an image's latent does not depend on its batch.
    """
    z = starts(G, x, y, ids, settings).requires_grad_()
    optimizer = torch.optim.Adam([z], settings.inversion_lr)
    for _ in range(settings.num_inversion_steps):
        (z.grad,) = torch.autograd.grad(inversion_error(G, z, y, x).sum(), z)
        optimizer.step()
        advance(len(ids))
    z = z.detach()
    with torch.no_grad():
        return z.cpu(), inversion_error(G, z, y, x).cpu()
