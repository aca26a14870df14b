"""Diffusion Inversion with guidance away from another class beside the unconditional term.

After DIPSY (Boudier et al. 2025, arXiv 2509.22635), which has image prompts in place of learned embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import model_validator

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import Guidance, sample
from dinv.section import PositiveFloat
from dinv.strategies.base import Draw, Facts, Inputs, Material
from dinv.strategies.cost import unet_passes
from dinv.strategies.diffusion_inversion import DiffusionInversion, DiffusionInversionParams
from dinv.strategies.from_noise import FromNoise, start_latents


class OtherClassGuidanceParams(DiffusionInversionParams):
    """Those of diffusion_inversion, and the scale of the other class."""

    other_class_scale: PositiveFloat

    @model_validator(mode="after")
    def _has_both_terms(self) -> "OtherClassGuidanceParams":
        if self.guidance_scale == 1 or self.unconditional == "other_class":
            raise ValueError(
                "other_class_scale stands beside guidance away from the unconditional condition; set "
                "guidance_scale above 1 and unconditional to mean or empty"
            )
        return self


@dataclass(frozen=True)
class FromNoiseAway(FromNoise):
    """eps = eps_u + s (eps_c - eps_u) - o (eps_o - eps_u), o = other_class_scale; three passes for a step.

    Inputs: as FromNoise, all of them, and `other_prompt_embeds` float32 [B, K, D], of the other class.
    """

    other_class_scale: float

    def render(self, model: LatentDiffusion, inputs: Inputs) -> torch.Tensor:
        """Sample the images, uint8 [B, H, W, C]."""
        base, c, other = (
            inputs[name].to(model.device)
            for name in ("negative_prompt_embeds", "prompt_embeds", "other_prompt_embeds")
        )
        guidance = Guidance(base, ((c, self.guidance_scale), (other, -self.other_class_scale)))
        noise = start_latents(inputs["noise_seed"], model.latent_shape)
        z = sample(model, noise, self.scheduler, self.num_inference_steps, lambda i, t: guidance)
        return model.decode(z)


class OtherClassGuidance(DiffusionInversion):
    """The other class is the one whose mean embedding is nearest to that of the image's class."""

    Params = OtherClassGuidanceParams  # type: ignore[assignment]
    params: OtherClassGuidanceParams

    def __init__(self, params: OtherClassGuidanceParams, material: Material):
        super().__init__(params, material)
        self._other_means = self.statistics.class_means[self._others()]

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Those of diffusion_inversion, with the scale of the other class and what its passes cost."""
        p = self.params
        passes = 3 * unet_passes(p.scheduler, p.num_inference_steps, guidance_scale=1.0)
        own: Facts = {"other_class_scale": p.other_class_scale, "unet_passes": passes}
        return [replace(draw, facts={**draw.facts, **own}) for draw in super().draws(indices)]

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Those of diffusion_inversion, and the other class's mean embedding."""
        labels = torch.tensor([draw.label for draw in draws])
        return {**super().inputs(draws), "other_prompt_embeds": self._other_means[labels]}

    def renderer(self) -> FromNoiseAway:
        """Samples from noise."""
        p = self.params
        return FromNoiseAway(p.guidance_scale, p.scheduler, p.num_inference_steps, p.other_class_scale)

    def previews(self) -> "list[tuple[str, DiffusionInversion]]":
        """With the other class's term."""
        return [(f"away from another class by {self.params.other_class_scale:g}", self)]
