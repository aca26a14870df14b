"""The one sampler of all strategies: any start latent, any range of steps, a condition per step."""

from collections.abc import Callable
from typing import Any

import torch

from dinv.diffusion.guidance import Guidance, guided
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.errors import UserError

__all__ = ["Guidance", "sample", "timesteps"]

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    # SD 1.x's own sampler and the paper's: PLMS, N steps cost N + 1 UNet passes.
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    # Deterministic (eta 0); a sample is not clipped to [-1, 1], since latents are unbounded.
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    # DPM-Solver++ 2M (Lu et al. 2022).
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}


def make_scheduler(model: LatentDiffusion, name: str, num_inference_steps: int) -> Any:
    """A fresh diffusers scheduler on the model's noise schedule, with its timesteps set.

    Raises:
        UserError: the scheduler cannot do what the model's schedule asks for.
    """
    import diffusers  # noqa: PLC0415 - takes seconds

    if name == "pndm" and model.schedule.get("rescale_betas_zero_snr"):
        raise UserError(
            "scheduler = 'pndm': it does not know rescale_betas_zero_snr, with which this model was trained; "
            "use ddim or dpmsolver++"
        )
    cls, options = _SCHEDULERS[name]
    schedule = dict(model.schedule)
    if name != "dpmsolver++" and schedule.get("timestep_spacing") == "linspace":
        # diffusers' PNDM and DDIM step down by T / N, which is not the distance of linspace's timesteps.
        schedule["timestep_spacing"] = "trailing"
    scheduler = getattr(diffusers, cls).from_config(schedule, **options)
    scheduler.set_timesteps(num_inference_steps, device=model.device)
    return scheduler


def timesteps(model: LatentDiffusion, scheduler_name: str, num_inference_steps: int) -> list[int]:
    """The N timesteps in [0, T) that a sampler visits, falling. Step i starts from latents at the i-th."""
    scheduler = make_scheduler(model, scheduler_name, num_inference_steps)
    return _visited(scheduler, scheduler_name)


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    z: torch.Tensor,
    scheduler_name: str,
    num_inference_steps: int,
    guidance_at: Callable[[int, int], Guidance],
    first_step: int = 0,
    last_step: int | None = None,
) -> torch.Tensor:
    """Denoise latents over a range of a sampler's steps; nothing here is random.

    Args:
        model: the frozen model.
        z: where to start, float32 [B, c, h, w]: N(0, I) for step 0; for a later one latents that have the
            noise of its timestep, `model.add_noise(z0, eps, timesteps(...)[first_step])`.
        scheduler_name: `pndm`, `ddim` or `dpmsolver++`.
        num_inference_steps: N, steps from pure noise to an image.
        guidance_at: (step i, its timestep t) to the guidance of that step.
        first_step: the step to start with, 0 to N.
        last_step: the step to stop before, which gives latents with the noise of its timestep; None: N,
            which gives clean latents.

    Returns:
        float32 [B, c, h, w] on the model's device.
    """
    scheduler = make_scheduler(model, scheduler_name, num_inference_steps)
    visited, z = _visited(scheduler, scheduler_name), z.to(model.device)
    if first_step == 0:
        z = z * scheduler.init_noise_sigma
    if hasattr(scheduler, "set_begin_index"):  # of those that count their steps
        scheduler.set_begin_index(first_step)
    for i in _calls(scheduler_name, range(len(visited))[first_step:last_step]):
        t = torch.tensor(visited[i], device=model.device)
        z_t = scheduler.scale_model_input(z, t)
        output = guided(model.predict, z_t, t.expand(len(z)), guidance_at(i, visited[i]))
        z = scheduler.step(output, t, z).prev_sample
    return z


def _visited(scheduler: Any, name: str) -> list[int]:
    """The timestep of each step; PNDM lists its second one twice."""
    listed: list[int] = scheduler.timesteps.tolist()
    return list(dict.fromkeys(listed)) if name == "pndm" else listed


def _calls(name: str, steps: range) -> list[int]:
    """Steps as they are computed. PLMS warms up by taking its first step twice, wherever it starts.

    diffusers' image-to-image pipeline does not, and so ends a step short of a clean image.
    """
    if name == "pndm" and len(steps) > 1:
        return [steps[0], steps[1], *steps[1:]]
    return list(steps)
