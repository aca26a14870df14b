"""What strategies share that edit real images towards a class: every image, several times."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, model_validator

from dinv.errors import UserError
from dinv.rng import generator
from dinv.section import PositiveInt, Template
from dinv.strategies.adapted import WithAdapter, find_adapter
from dinv.strategies.base import Draw, Facts, Inputs, Material, Renderer
from dinv.strategies.conditions import SamplerParams, class_conditions
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_image import FromImage, first_step
from dinv.strategies.from_noise import noise_seeds

Strength = Annotated[float, Field(gt=0, le=1)]


class VariantsParams(SamplerParams):
    """`input` is data/real/train with a prompt, or what class_embeddings or class_lora learned with null."""

    takes_adapter: ClassVar[bool] = True
    prompt: Template | None
    num_images_per_source: PositiveInt


class EditParams(VariantsParams):
    """One strength for all images, or several of which each image draws one."""

    strengths: Annotated[list[Strength], Field(min_length=1)]

    @model_validator(mode="after")
    def _every_strength_takes_a_step(self) -> "EditParams":
        require_steps(self.strengths, self.num_inference_steps)
        return self


def require_steps(strengths: Sequence[float], num_inference_steps: int) -> None:
    """Raise ValueError for a strength that is less than one of the sampler's steps."""
    for r in strengths:
        if first_step(r, num_inference_steps) == num_inference_steps:
            raise ValueError(
                f"strengths: {r:g} of num_inference_steps = {num_inference_steps} is less than one step and "
                "leaves the image as it is; raise either"
            )


class Variants:
    """Variant 0 of every training image, then variant 1, ...: more variants only append."""

    def __init__(self, params: VariantsParams, material: Material, user: str):
        self.params, self.real = params, material.real
        self.conditions = class_conditions(params.prompt, material, user)
        self.adapter = None if params.prompt is not None else find_adapter(material.folder, user)
        self._row_of = {image_id: row for row, image_id in enumerate(self.real.ids)}

    def __len__(self) -> int:
        return self.params.num_images_per_source * len(self.real)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The given ones of all variants."""
        places = [divmod(i, len(self.real)) for i in indices]
        return [self.draw(row, variant) for variant, row in places]

    def draw(self, row: int, variant: int) -> Draw:
        """One variant of one training image."""
        raise NotImplementedError

    def facts(self, variant: int, target: int, num_steps: int) -> Facts:
        """What every variant tells of itself."""
        p = self.params
        return {
            "variant": variant,
            "prompt": self.conditions.text(target),
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "unet_passes": unet_passes(p.scheduler, num_steps, p.guidance_scale),
        }

    def adapted(self, renderer: Renderer) -> Renderer:
        """The renderer with the adapter that was learned with the conditions, if there is one."""
        return renderer if self.adapter is None else WithAdapter(renderer, self.adapter)

    def images(self, ids: Sequence[str]) -> torch.Tensor:
        """Training images at the model's resolution, uint8 [B, H, W, C]."""
        return torch.from_numpy(self.real.take([self._row_of[i] for i in ids]).images)

    def shared_inputs(self, draws: Sequence[Draw], targets: Sequence[int]) -> Inputs:
        """Source images, conditions of the given classes, and seeds of the noise."""
        inputs = {
            "images": self.images([str(d.source_id) for d in draws]),
            "prompt_embeds": self.conditions.of(targets),
            "noise_seed": noise_seeds(self.params.seed, [(d.id,) for d in draws]),
        }
        if self.params.guidance_scale > 1:
            empty = self.conditions.unconditional()
            inputs["negative_prompt_embeds"] = empty.expand(len(draws), -1, -1)
        return inputs


class Edits(Variants):
    """SDEdit of every training image towards a class that `target` chooses, labelled by `label`."""

    def __init__(self, params: EditParams, material: Material, user: str):
        super().__init__(params, material, user)
        self.params: EditParams = params
        self.material, self.user = material, user

    def target(self, row: int, variant: int) -> int:
        """The class that an image is edited towards: its own."""
        return int(self.real.labels[row])

    def label(self, own: int, target: int, strength: float) -> tuple[int, tuple[float, ...] | None]:
        """Label of the edited image, and its probabilities if that is not sure."""
        return target, None

    def draw(self, row: int, variant: int) -> Draw:
        """One edit; its strength is drawn."""
        p, source = self.params, self.real.ids[row]
        g = generator(p.seed, "strength", source, variant)
        strength = p.strengths[int(torch.randint(len(p.strengths), (), generator=g))]
        target = self.target(row, variant)
        label, probabilities = self.label(int(self.real.labels[row]), target, strength)
        num_steps = p.num_inference_steps - first_step(strength, p.num_inference_steps)
        facts = {
            **self.facts(variant, target, num_steps),
            "strength": strength,
            "target": target,
        }
        return Draw(f"{source}#{variant}", label, source, facts, probabilities)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Images, conditions, noise seeds and first steps."""
        inputs = self.shared_inputs(draws, [int(d.facts["target"]) for d in draws])
        n = self.params.num_inference_steps
        inputs["first_step"] = torch.tensor([first_step(float(d.facts["strength"]), n) for d in draws])
        return inputs

    def renderer(self) -> Renderer:
        """Noises and denoises."""
        p = self.params
        return self.adapted(FromImage(p.guidance_scale, p.scheduler, p.num_inference_steps))

    def previews(self) -> "list[tuple[str, Edits]]":
        """A row for each strength."""
        return [
            (f"strength {r:g}", type(self)(self.params.model_copy(update={"strengths": [r]}), self.material))  # type: ignore[call-arg]
            for r in sorted(set(self.params.strengths))
        ]


def other_class(num_classes: int, own: int, seed: int, source: str, variant: int) -> int:
    """Another class for a variant of an image: a random order of all others, again from the start after it.

    So an image's first M - 1 variants go to M - 1 different classes.
    """
    order = torch.randperm(num_classes - 1, generator=generator(seed, "target", source)).tolist()
    place = int(order[variant % len(order)])
    return place + int(place >= own)


def require_several_classes(class_names: Sequence[str], user: str) -> None:
    """Raise UserError where there is no other class."""
    if len(class_names) < 2:
        raise UserError(f"{user}: edits images towards other classes, and there is only {class_names[0]!r}")


def one_hot_mixture(num_classes: int, weights: Mapping[int, float]) -> tuple[float, ...]:
    """Probabilities of every class from those of a few."""
    return tuple(float(weights.get(k, 0.0)) for k in range(num_classes))
