"""A prompt with the class's name, from noise: the simplest use of a text-conditional model."""

from collections.abc import Sequence

from dinv.section import PositiveInt, Template
from dinv.strategies.base import Draw, Facts, Inputs, Material
from dinv.strategies.conditions import SamplerParams, class_conditions
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_noise import FromNoise, noise_seeds


class ClassNamePromptParams(SamplerParams):
    """`input` is data/real/train, of which only the classes' names are used."""

    prompt: Template
    num_images_per_class: PositiveInt


class ClassNamePrompt:
    """Images of each class from its prompt; no real image is looked at.

    The usual comparator, such as "single template" of He et al. 2023 (arXiv 2210.07574, section 3.1), with
    Stable Diffusion's habits: "a photo of a {class}", empty prompt, s = 7.5.
    """

    Params = ClassNamePromptParams

    def __init__(self, params: ClassNamePromptParams, material: Material):
        self.params, self.class_names = params, material.real.class_names
        self.conditions = class_conditions(params.prompt, material, "class_name_prompt")

    def __len__(self) -> int:
        return self.params.num_images_per_class * len(self.class_names)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The first image of every class, then the second, ...: more images only append."""
        return [self._draw(*divmod(i, len(self.class_names))) for i in indices]

    def _draw(self, variant: int, label: int) -> Draw:
        p = self.params
        facts: Facts = {
            "variant": variant,
            "prompt": self.conditions.text(label),
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "unet_passes": unet_passes(p.scheduler, p.num_inference_steps, p.guidance_scale),
        }
        return Draw(f"{self.class_names[label]}#{variant}", label, None, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Prompts and seeds of the start latents."""
        inputs = {
            "prompt_embeds": self.conditions.of([d.label for d in draws]),
            "noise_seed": noise_seeds(self.params.seed, [(d.id,) for d in draws]),
        }
        if self.params.guidance_scale > 1:
            empty = self.conditions.unconditional()
            inputs["negative_prompt_embeds"] = empty.expand(len(draws), -1, -1)
        return inputs

    def renderer(self) -> FromNoise:
        """Samples from noise."""
        p = self.params
        return FromNoise(p.guidance_scale, p.scheduler, p.num_inference_steps)

    def previews(self) -> "list[tuple[str, ClassNamePrompt]]":
        """One image of each class."""
        return [(f"prompt, s {self.params.guidance_scale:g}", self)]
