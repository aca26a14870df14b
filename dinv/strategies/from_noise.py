"""Renderer of the strategies that sample from pure noise under a condition per image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import Guidance, sample
from dinv.errors import UserError
from dinv.rng import derive_seed
from dinv.strategies.base import Inputs, OpenModel


@dataclass(frozen=True)
class FromNoise:
    """Samples with classifier-free guidance.

    Inputs: `prompt_embeds` float32 [B, K, D]; `negative_prompt_embeds` [B, K, D], unless guidance_scale
    is 1; `noise_seed` int64 [B], of each image's start latent.
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
        """Sample the images; raises UserError when the embeddings do not fit the model."""
        c = inputs["prompt_embeds"]
        if c.shape[2] != model.width:
            raise UserError(
                f"generate: embeddings have width {c.shape[2]}, the model's cross-attention {model.width}; "
                "run dvc repro with this model.path, so that they are learned for it"
            )
        c_uncond = inputs.get("negative_prompt_embeds", c).to(model.device)
        guidance = Guidance(c_uncond, ((c.to(model.device), self.guidance_scale),))
        noise = start_latents(inputs["noise_seed"], model.latent_shape)
        z = sample(model, noise, self.scheduler, self.num_inference_steps, lambda i, t: guidance)
        return model.decode(z)


def noise_seeds(seed: int, keys: Sequence[tuple[str | int, ...]]) -> torch.Tensor:
    """Seeds of start latents, int64 [B], one for each key."""
    return torch.tensor([derive_seed(seed, "latents", *key) for key in keys])


def start_latents(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """N(0, I) float32 [B, c, h, w], each image's from its own seed."""
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    )
