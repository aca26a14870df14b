"""DDIM (Song et al. 2021, arXiv 2010.02502) one step at a time, forwards and backwards in time.

abar_s of a clean image is abar_0, as in Stable Diffusion's own sampler (`set_alpha_to_one: false`).
"""

from collections.abc import Sequence

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import timesteps


def x0_and_eps(
    model: LatentDiffusion, z: torch.Tensor, output: torch.Tensor, abar: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents and the noise that a UNet's output says are in z, whose noise level is abar."""
    if model.scheduler.config.prediction_type == "epsilon":
        return (z - (1 - abar).sqrt() * output) / abar.sqrt(), output
    return abar.sqrt() * z - (1 - abar).sqrt() * output, abar.sqrt() * output + (1 - abar).sqrt() * z


def variance(abar_t: torch.Tensor, abar_s: torch.Tensor) -> torch.Tensor:
    """sigma^2 of a step from t to s with eta = 1, equation 16: that of DDPM."""
    return (1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s)


def step_mean(
    x0: torch.Tensor, eps: torch.Tensor, abar_s: torch.Tensor, sigma2: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps, equation 12 without its noise."""
    return abar_s.sqrt() * x0 + (1 - abar_s - sigma2).sqrt() * eps


def inversion_timesteps(
    model: LatentDiffusion, num_inference_steps: int, num_inversion_steps: int
) -> list[int]:
    """Rising timesteps from a clean image to where `num_inference_steps` of DDIM start.

    Every step of the sampler is taken back in num_inversion_steps / num_inference_steps smaller ones, so that
    inversion ends exactly where sampling starts.
    """
    factor, start, found = num_inversion_steps // num_inference_steps, 0, set()
    for end in reversed(timesteps(model, "ddim", num_inference_steps)):
        found |= {round(start + (end - start) * k / factor) for k in range(1, factor + 1)}
        start = end
    return sorted(found - {0})  # a step from clean to timestep 0 changes nothing


@torch.no_grad()
def ddim_invert(
    model: LatentDiffusion, z0: torch.Tensor, c: torch.Tensor, steps: Sequence[int]
) -> torch.Tensor:
    """The start latents from which DDIM comes (nearly) back to z0 under condition c; no guidance.

    A step from s to t asks the UNet at t, as the step back will, with z_s for z_t.

    Args:
        model: the frozen model.
        z0: clean latents, float32 [B, c, h, w].
        c: float32 [B, K, D], on the device.
        steps: rising timesteps, see `inversion_timesteps`.
    """
    z, abar_s = z0, model.alphas_cumprod[0]
    for step in steps:
        t = torch.full((len(z),), step, device=model.device)
        x0, eps = x0_and_eps(model, z, model.predict(z, t, c), abar_s)
        abar_s = model.alphas_cumprod[step]
        z = step_mean(x0, eps, abar_s)
    return z
