"""Variations of every real image: an image-variation model samples under its own image encoder's embedding.

Pinkney's fine-tuned Stable Diffusion (2022), as diffusers' StableDiffusionImageVariationPipeline samples.
"""

from collections.abc import Sequence

import torch

from dinv.inversion.encoded import encoder_embeds
from dinv.section import PositiveInt
from dinv.strategies.base import Draw, Facts, Inputs, Material
from dinv.strategies.conditions import SamplerParams
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_noise import FromNoise, noise_seeds


class VariationParams(SamplerParams):
    """`input` is data/real/train."""

    num_images_per_source: PositiveInt


class Variation:
    """c = E(x), one token; guidance leads away from zeros. The author: s = 3, 50 steps of PNDM."""

    Params = VariationParams

    def __init__(self, params: VariationParams, material: Material):
        self.params, self.real = params, material.real
        self._embeds = encoder_embeds(material.open_model(), self.real, "variation")
        self._row_of = {image_id: row for row, image_id in enumerate(self.real.ids)}

    def __len__(self) -> int:
        return self.params.num_images_per_source * len(self.real)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Variant 0 of every training image, then variant 1, ...: more variants only append."""
        return [self._draw(*divmod(i, len(self.real))) for i in indices]

    def _draw(self, variant: int, row: int) -> Draw:
        p, source = self.params, self.real.ids[row]
        facts: Facts = {
            "variant": variant,
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "unet_passes": unet_passes(p.scheduler, p.num_inference_steps, p.guidance_scale),
        }
        return Draw(f"{source}#{variant}", int(self.real.labels[row]), source, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Embeddings of the sources, and seeds of the start latents."""
        c = self._embeds[[self._row_of[str(d.source_id)] for d in draws]][:, None]
        inputs = {"prompt_embeds": c, "noise_seed": noise_seeds(self.params.seed, [(d.id,) for d in draws])}
        if self.params.guidance_scale > 1:
            inputs["negative_prompt_embeds"] = torch.zeros_like(c)
        return inputs

    def renderer(self) -> FromNoise:
        """Samples from noise."""
        p = self.params
        return FromNoise(p.guidance_scale, p.scheduler, p.num_inference_steps)

    def previews(self) -> "list[tuple[str, Variation]]":
        """The first variants."""
        return [("variation", self)]
