"""Draw images from a frozen latent diffusion model under given conditions."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from dinv.diffusion.latent_diffusion import LatentDiffusion

_SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    # SD 1.x's own sampler and the paper's: PLMS, N steps cost N + 1 UNet passes.
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False}),
    # Deterministic (eta 0); a sample is not clipped to [-1, 1], since latents are unbounded.
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    # DPM-Solver++ 2M (Lu et al. 2022).
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}


def make_scheduler(model: LatentDiffusion, name: str, num_inference_steps: int) -> Any:
    """A fresh diffusers scheduler on the model's noise schedule, with its timesteps set."""
    cls, options = _SCHEDULERS[name]
    scheduler = cls.from_config(model.schedule, **options)
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    return scheduler


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    noise: torch.Tensor,
    prompt_embeds: torch.Tensor,
    negative_prompt_embeds: torch.Tensor,
    guidance_scale: float,
    scheduler: str,
    num_inference_steps: int,
) -> torch.Tensor:
    """Denoise from pure noise to images.

    Args:
        model: the frozen model.
        noise: N(0, I), float32 [B, c, h, w]; the only randomness of all three samplers.
        prompt_embeds: conditions, float32 [B, K, D].
        negative_prompt_embeds: unconditional conditions, float32 [B, K, D]; ignored at scale 1.
        guidance_scale: s >= 1 in diffusers' convention (the paper's w is s - 1).
        scheduler: `pndm`, `ddim` or `dpmsolver++`.
        num_inference_steps: denoising steps.

    Returns:
        uint8 [B, H, W, C] on the CPU.
    """
    steps = make_scheduler(model, scheduler, num_inference_steps)
    z = noise.to(model.device) * steps.init_noise_sigma
    c, c_uncond = prompt_embeds.to(model.device), negative_prompt_embeds.to(model.device)
    for t in steps.timesteps:
        batch_t = t.expand(len(z))
        output = model.guided(steps.scale_model_input(z, t), batch_t, c, c_uncond, guidance_scale)
        z = steps.step(output, t, z).prev_sample
    return model.decode(z)
