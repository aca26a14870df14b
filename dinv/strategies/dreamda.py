"""DreamDA (Fu et al. 2024, arXiv 2403.12803): the encoded image decoded with noise on the bottleneck."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import model_validator

from dinv.diffusion.bottleneck import bottleneck_noise
from dinv.diffusion.ddim import step_mean, variance, x0_and_eps
from dinv.diffusion.guidance import Guidance, guided
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.sampling import timesteps
from dinv.rng import generator
from dinv.section import NonNegativeFloat
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel, Renderer
from dinv.strategies.cost import unet_passes
from dinv.strategies.edits import Strength, Variants, VariantsParams, require_steps
from dinv.strategies.from_image import first_step, guidance_of, require_width


class DreamDAParams(VariantsParams):
    """`bottleneck_std` is in units of the standard deviation of the mid block's features."""

    scheduler: Literal["ddim"]
    strength: Strength
    bottleneck_std: NonNegativeFloat

    @model_validator(mode="after")
    def _strength_takes_a_step(self) -> "DreamDAParams":
        require_steps([self.strength], self.num_inference_steps)
        return self


@dataclass(frozen=True)
class Perturbed:
    """Stochastic encoder (Wu and De la Torre 2023, arXiv 2210.05559) and perturbed decoder, step by step.

    A path z_t of the real image is drawn from q(z_s | z_t, z_0); what the UNet under the empty prompt would
    have missed of each step, z_s - mu(z_t), is added to the target's own step: without a change of condition
    and without noise on the bottleneck the image comes back.

    Inputs: `images` uint8 [B, H, W, C]; `prompt_embeds` and `negative_prompt_embeds` float32 [B, K, D], the
    latter also the source's condition; `noise_seed` int64 [B].
    """

    uses_model: ClassVar[bool] = True
    guidance_scale: float
    num_inference_steps: int
    first_step: int
    bottleneck_std: float

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model."""
        model = open_model()
        return lambda inputs: model.decode(self.latents(model, inputs))

    def latents(self, model: LatentDiffusion, inputs: Inputs) -> torch.Tensor:
        """Clean latents of the new images, float32 [B, c, h, w]."""
        require_width(model, inputs["prompt_embeds"])
        guidance = guidance_of(model, inputs, self.guidance_scale)
        empty = Guidance(None, ((inputs["negative_prompt_embeds"].to(model.device), 1.0),))
        seeds = inputs["noise_seed"].tolist()
        z0, steps = model.encode(inputs["images"]).mean, timesteps(model, "ddim", self.num_inference_steps)
        t = steps[self.first_step]
        z = model.add_noise(z0, _noise(model, seeds, "start"), torch.full((len(z0),), t, device=model.device))
        source = z
        for i, t in enumerate(steps[self.first_step :], self.first_step):
            abar_t, last = model.alphas_cumprod[t], i + 1 == len(steps)
            abar_s = model.alphas_cumprod[0 if last else steps[i + 1]]
            source_mean = _mean(model, source, t, empty, abar_s)
            xi = _noise(model, seeds, f"path {i}")
            source = z0 if last else posterior_sample(z0, source, abar_t, abar_s, xi)
            with self._noisy(model, seeds, i):
                z = _mean(model, z, t, guidance, abar_s) + source - source_mean
        return z

    def _noisy(self, model: LatentDiffusion, seeds: Sequence[int], step: int) -> AbstractContextManager[None]:
        def noise(which: int, shape: torch.Size) -> torch.Tensor:
            keys = [generator(seed, "bottleneck", step, which) for seed in seeds]
            return torch.stack([torch.randn(shape[1:], generator=g) for g in keys])

        return bottleneck_noise(model.unet, len(seeds), self.bottleneck_std, noise)


def posterior_sample(
    z0: torch.Tensor, z_t: torch.Tensor, abar_t: torch.Tensor, abar_s: torch.Tensor, xi: torch.Tensor
) -> torch.Tensor:
    """z_s ~ q(z_s | z_t, z_0): the mean that DDIM's equation 12 gives for the true noise, plus sigma xi."""
    sigma2 = variance(abar_t, abar_s)
    eps = (z_t - abar_t.sqrt() * z0) / (1 - abar_t).sqrt()
    return step_mean(z0, eps, abar_s, sigma2) + sigma2.sqrt() * xi


def _mean(
    model: LatentDiffusion, z: torch.Tensor, step: int, guidance: Guidance, abar_s: torch.Tensor
) -> torch.Tensor:
    """mu of the step from t to s as the UNet sees it, eta = 1."""
    t, abar_t = torch.full((len(z),), step, device=model.device), model.alphas_cumprod[step]
    with torch.no_grad():
        output = guided(model.predict, z, t, guidance)
    x0, eps = x0_and_eps(model, z, output, abar_t)
    return step_mean(x0, eps, abar_s, variance(abar_t, abar_s))


def _noise(model: LatentDiffusion, seeds: Sequence[int], purpose: str) -> torch.Tensor:
    draws = [torch.randn(model.latent_shape, generator=generator(seed, purpose)) for seed in seeds]
    return torch.stack(draws).to(model.device)


class DreamDA(Variants):
    """Real images through a stochastic encoder and back under their class's condition.

    The authors: 100 steps, strength 0.8, s = 7.5, the empty prompt as source's, noise of 3 (absolute, in
    Stable Diffusion 1.5) on the bottleneck at every step. Labels are the sources'; the code of their
    self-training (AMST) was never published, see learner `amst`.
    """

    Params = DreamDAParams

    def __init__(self, params: DreamDAParams, material: Material):
        super().__init__(params, material, "dreamda")
        self.params: DreamDAParams = params
        self._material = material
        self._first = first_step(params.strength, params.num_inference_steps)

    def draw(self, row: int, variant: int) -> Draw:
        """One image."""
        p, source, label = self.params, self.real.ids[row], int(self.real.labels[row])
        steps = p.num_inference_steps - self._first
        facts: Facts = {
            **self.facts(variant, label, steps),
            "strength": p.strength,
            "bottleneck_std": p.bottleneck_std,
            "unet_passes": unet_passes("ddim", steps, p.guidance_scale) + steps,
        }
        return Draw(f"{source}#{variant}", label, source, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Images, conditions, seeds."""
        inputs = self.shared_inputs(draws, [d.label for d in draws])
        inputs["negative_prompt_embeds"] = self.conditions.unconditional().expand(len(draws), -1, -1)
        return inputs

    def renderer(self) -> Renderer:
        """Encodes and decodes with noise."""
        p = self.params
        renderer = Perturbed(p.guidance_scale, p.num_inference_steps, self._first, p.bottleneck_std)
        return self.adapted(renderer)

    def previews(self) -> "list[tuple[str, DreamDA]]":
        """Without and with noise on the bottleneck."""
        stds = sorted({0.0, self.params.bottleneck_std})
        return [
            (
                f"bottleneck {std:g}",
                DreamDA(self.params.model_copy(update={"bottleneck_std": std}), self._material),
            )
            for std in stds
        ]
