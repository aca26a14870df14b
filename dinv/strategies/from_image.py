"""SDEdit (Meng et al. 2022, arXiv 2108.01073): a noised real image, denoised under another condition."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import Guidance, sample, timesteps
from dinv.errors import UserError
from dinv.strategies.base import Inputs, OpenModel
from dinv.strategies.from_noise import start_latents


def first_step(strength: float, num_inference_steps: int) -> int:
    """The step that an edit of strength r starts with: the last floor(r N) of N steps are taken.

    As in diffusers' image-to-image pipeline. 1: all steps; the image is then all but gone.
    """
    return num_inference_steps - int(strength * num_inference_steps + 1e-9)  # 0.29 * 100 is 28.999...


@dataclass(frozen=True)
class FromImage:
    """z_t = sqrt(abar_t) E(x) + sqrt(1 - abar_t) eps at the timestep of `first_step`, denoised with guidance.

    Inputs: `images` uint8 [B, H, W, C] at the model's resolution; `prompt_embeds` float32 [B, K, D];
    `negative_prompt_embeds` [B, K, D], unless guidance_scale is 1; `noise_seed` int64 [B]; `first_step`
    int64 [B].
    """

    uses_model: ClassVar[bool] = True
    guidance_scale: float
    scheduler: str
    num_inference_steps: int

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model."""
        model = open_model()
        return lambda inputs: self.render(model, inputs)

    def render(self, model: LatentDiffusion, inputs: Inputs) -> torch.Tensor:
        """Edit the images: those that start with the same step together."""
        require_width(model, inputs["prompt_embeds"])
        z0 = model.encode(inputs["images"]).mean
        eps = start_latents(inputs["noise_seed"], model.latent_shape).to(model.device)
        out = torch.empty_like(z0)
        for first in inputs["first_step"].unique().tolist():
            rows = inputs["first_step"] == first
            guidance = guidance_of(model, {k: v[rows] for k, v in inputs.items()}, self.guidance_scale)
            out[rows] = self.edit(model, z0[rows], eps[rows], first, guidance)
        return model.decode(out)

    def edit(
        self, model: LatentDiffusion, z0: torch.Tensor, eps: torch.Tensor, first: int, guidance: Guidance
    ) -> torch.Tensor:
        """Latents float32 [B, c, h, w] of images z0, noised with eps and denoised from step `first` on."""
        t = timesteps(model, self.scheduler, self.num_inference_steps)[first]
        z_t = model.add_noise(z0, eps, torch.full((len(z0),), t, device=model.device))
        return sample(model, z_t, self.scheduler, self.num_inference_steps, lambda i, t: guidance, first)


def guidance_of(model: LatentDiffusion, inputs: Inputs, scale: float) -> Guidance:
    """Classifier-free guidance from `negative_prompt_embeds`, if there are any, to `prompt_embeds`."""
    c = inputs["prompt_embeds"].to(model.device)
    return Guidance(inputs.get("negative_prompt_embeds", c).to(model.device), ((c, scale),))


def require_width(model: LatentDiffusion, c: torch.Tensor) -> None:
    """Raise UserError unless conditions [B, K, D] fit the model."""
    if c.shape[2] != model.width:
        raise UserError(
            f"generate: conditions have width {c.shape[2]}, the model's cross-attention {model.width}; "
            "run dvc repro with this model.path, so that they are made for it"
        )
