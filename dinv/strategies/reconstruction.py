"""Real images through the VAE only: the ceiling of what the latent space can carry."""

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion


def reconstruct(model: LatentDiffusion, images: torch.Tensor) -> torch.Tensor:
    """decode(encode(images).mean): uint8 [B, H, W, C] to the same shape, on the CPU."""
    return model.decode(model.encode(images).mean)
