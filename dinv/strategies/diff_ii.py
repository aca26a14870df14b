"""Diff-II (Wang et al. 2025, arXiv 2408.16266): between the inverted latents of two images of a class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import model_validator

from dinv.diffusion.ddim import ddim_invert, inversion_timesteps
from dinv.diffusion.guidance import Guidance
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import sample
from dinv.diffusion.text import load_text_encoder
from dinv.errors import UserError
from dinv.rng import generator
from dinv.section import Fraction, PositiveInt
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel, Renderer
from dinv.strategies.cost import unet_passes
from dinv.strategies.edits import Variants, VariantsParams
from dinv.strategies.from_image import guidance_of, require_width


class DiffIIParams(VariantsParams):
    """`suffixes` are put behind the prompt for the first `suffix_fraction` q of the noise levels."""

    scheduler: Literal["ddim"]
    num_inversion_steps: PositiveInt
    suffixes: list[str]
    suffix_fraction: Fraction

    @model_validator(mode="after")
    def _options_fit(self) -> "DiffIIParams":
        if self.num_inversion_steps % self.num_inference_steps:
            raise ValueError(
                f"num_inversion_steps = {self.num_inversion_steps}: must be a multiple of "
                f"num_inference_steps ({self.num_inference_steps})"
            )
        if bool(self.suffixes) != (self.suffix_fraction > 0):
            raise ValueError("suffixes and suffix_fraction go together: set both, or [] and 0.0")
        if self.suffixes and self.prompt is None:
            raise ValueError("suffixes need a prompt to stand behind; set them to [] with prompt: null")
        return self


def circle(z1: torch.Tensor, z2: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """A point of the great circle through z1 and z2: z1 turned by `angle` away from z2.

    z = (sin(theta + phi) z1 - sin(phi) z2) / sin(theta), theta the angle between z1 and z2: the paper's
    equation with phi = u theta; z1 where the two have (nearly) one direction.

    Args:
        z1: float32 [B, c, h, w].
        z2: float32 [B, c, h, w].
        angle: phi in [0, 2 pi), [B].
    """
    cosine = torch.cosine_similarity(z1.flatten(1), z2.flatten(1)).clamp(-1, 1)
    theta, phi = (x.view(-1, 1, 1, 1) for x in (cosine.arccos(), angle))
    turned = ((theta + phi).sin() * z1 - phi.sin() * z2) / theta.sin()
    return torch.where(theta.sin() < 1e-2, z1, turned)


@dataclass(frozen=True)
class OnCircle:
    """DDIM inversion of both images, a point of their circle, DDIM in two stages.

    Inputs: `images` and `partner_images` uint8 [B, H, W, C]; `prompt_embeds` float32 [B, K, D],
    `suffixed_embeds` likewise for the first stage if there is one, `negative_prompt_embeds` unless
    guidance_scale is 1; `angle` float32 [B].
    """

    uses_model: ClassVar[bool] = True
    guidance_scale: float
    num_inference_steps: int
    num_inversion_steps: int
    suffix_fraction: float

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model."""
        model = open_model()
        return lambda inputs: self.render(model, inputs)

    def render(self, model: LatentDiffusion, inputs: Inputs) -> torch.Tensor:
        """Invert, turn, sample."""
        require_width(model, inputs["prompt_embeds"])
        steps = inversion_timesteps(model, self.num_inference_steps, self.num_inversion_steps)
        c = inputs["prompt_embeds"].to(model.device)
        z1, z2 = (
            ddim_invert(model, model.encode(inputs[name]).mean, c, steps)
            for name in ("images", "partner_images")
        )
        z = circle(z1, z2, inputs["angle"].to(model.device))
        stages = self._stages(model, inputs)
        return model.decode(sample(model, z, "ddim", self.num_inference_steps, stages))

    def _stages(self, model: LatentDiffusion, inputs: Inputs) -> Callable[[int, int], Guidance]:
        plain = guidance_of(model, inputs, self.guidance_scale)
        if "suffixed_embeds" not in inputs:
            return lambda i, t: plain
        first = guidance_of(
            model, {**inputs, "prompt_embeds": inputs["suffixed_embeds"]}, self.guidance_scale
        )
        switch = model.num_train_timesteps * (1 - self.suffix_fraction)
        return lambda i, t: first if t >= switch else plain


class DiffII(Variants):
    """Random points of the great circle through the inverted latents of same-class pairs.

    The paper: 200 steps of inversion, 25 of DDIM, s = 7.5, five images of each real one; q = 1, 0.3 or 0.1 by
    data set. Its concepts, a token per class and a LoRA, are what `class_lora` learned; or class embeddings
    alone, or prompts.
    """

    Params = DiffIIParams

    def __init__(self, params: DiffIIParams, material: Material):
        super().__init__(params, material, "diff_ii")
        self.params: DiffIIParams = params
        self._members = members_of_classes(self.real.ids, self.real.labels.tolist())
        alone = [ids[0] for ids in self._members.values() if len(ids) == 1]
        if alone:
            raise UserError(
                f"diff_ii: image {alone[0]!r} is the only one of its class and has no partner; add images"
            )
        if params.suffixes:
            self._encoder = load_text_encoder(material.open_model(), "diff_ii")
        self._steps = len(
            inversion_timesteps(material.open_model(), params.num_inference_steps, params.num_inversion_steps)
        )

    def draw(self, row: int, variant: int) -> Draw:
        """A partner, an angle and a suffix."""
        p, source, label = self.params, self.real.ids[row], int(self.real.labels[row])
        g = generator(p.seed, "circle", source, variant)
        others = [i for i in self._members[label] if i != source]
        partner = others[int(torch.randint(len(others), (), generator=g))]
        angle = 2 * torch.pi * torch.rand((), generator=g).item()
        suffix = p.suffixes[int(torch.randint(len(p.suffixes), (), generator=g))] if p.suffixes else ""
        passes = unet_passes("ddim", p.num_inference_steps, p.guidance_scale) + 2 * self._steps
        facts: Facts = {
            **self.facts(variant, label, p.num_inference_steps),
            "partner_id": partner,
            "angle": angle,
            "suffix": suffix,
            "unet_passes": passes,
        }
        return Draw(f"{source}#{variant}", label, source, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Both images, conditions, angles."""
        inputs = self.shared_inputs(draws, [d.label for d in draws])
        del inputs["noise_seed"]
        inputs["partner_images"] = self.images([str(d.facts["partner_id"]) for d in draws])
        inputs["angle"] = torch.tensor([float(d.facts["angle"]) for d in draws])
        if self.params.suffixes:
            prompts = [f"{d.facts['prompt']} {d.facts['suffix']}" for d in draws]
            inputs["suffixed_embeds"] = self._encoder.embeds(prompts)
        return inputs

    def renderer(self) -> Renderer:
        """Inverts, turns, samples."""
        p = self.params
        steps = (p.num_inference_steps, p.num_inversion_steps)
        return self.adapted(OnCircle(p.guidance_scale, *steps, p.suffix_fraction))

    def previews(self) -> "list[tuple[str, DiffII]]":
        """The strategy as it is."""
        return [("circle", self)]


def members_of_classes(ids: Sequence[str], labels: Sequence[int]) -> dict[int, list[str]]:
    """Class -> ids of its images, sorted: the order of the image set does not matter."""
    members: dict[int, list[str]] = {}
    for image_id, label in sorted(zip(ids, labels, strict=True)):
        members.setdefault(label, []).append(image_id)
    return members
