"""Samples of the whole domain without labels: from a density over all embeddings, or the empty prompt."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import model_validator

from dinv.errors import UserError
from dinv.inversion.bank import load_bank, load_statistics
from dinv.rng import generator
from dinv.section import NonNegativeFloat, PositiveInt
from dinv.strategies.base import Draw, Facts, Inputs, Material
from dinv.strategies.class_noise import Shrunk, shrunk
from dinv.strategies.conditions import SamplerParams
from dinv.strategies.cost import unet_passes
from dinv.strategies.from_noise import FromNoise, noise_seeds
from dinv.strategies.unlabelled import unlabelled

Middle = Literal["mean", "empty"]


class DomainParams(SamplerParams):
    """`input` is a folder of embeddings that `invert` learned, one per image.

    `center` m and `spread` decide the conditions, `unconditional` what guidance leads away from: the mean of
    all embeddings or the empty prompt.
    """

    num_images_per_source: PositiveInt
    center: Middle
    spread: NonNegativeFloat
    unconditional: Middle

    @model_validator(mode="after")
    def _guidance_has_an_effect(self) -> "DomainParams":
        if self.guidance_scale > 1 and self.spread == 0 and self.center == self.unconditional:
            raise ValueError("guidance would lead away from the condition itself; set guidance_scale to 1")
        return self


class Domain:
    """c = m + spread xi, xi ~ N(0, Sigma): Sigma is the covariance of all learned embeddings, whatever their
    class, shrunk as Ledoit and Wolf (2004) do.

    There are as many images as other strategies make from so many labelled ones.
    """

    Params = DomainParams

    def __init__(self, params: DomainParams, material: Material):
        self.params, self.num_classes = params, len(material.real.class_names)
        self.bank, self._mean = load_bank(material.folder), load_statistics(material.folder).mean
        self._open = material.open_model
        self._sigma = self._covariance() if params.spread > 0 else None
        middles = {params.center, *([params.unconditional] if params.guidance_scale > 1 else [])}
        self._middles = {name: self._middle(name) for name in middles}

    def __len__(self) -> int:
        return self.params.num_images_per_source * len(self.bank.ids)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The first image, the second, ...: more images only append."""
        p = self.params
        facts: Facts = {
            "center": p.center,
            "spread": p.spread,
            "guidance_scale": p.guidance_scale,
            "scheduler": p.scheduler,
            "num_inference_steps": p.num_inference_steps,
            "seed": p.seed,
            "unet_passes": unet_passes(p.scheduler, p.num_inference_steps, p.guidance_scale),
        }
        return [unlabelled("domain", i, self.num_classes, facts) for i in indices]

    def conditions(self, draws: Sequence[Draw]) -> torch.Tensor:
        """c, float32 [B, K, D]."""
        m = self._middles[self.params.center].expand(len(draws), -1, -1)
        if self._sigma is None:
            return m
        return m + self.params.spread * torch.stack([self._xi(self._sigma, draw.id) for draw in draws])

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Conditions and seeds of the start latents."""
        inputs = {
            "prompt_embeds": self.conditions(draws),
            "noise_seed": noise_seeds(self.params.seed, [(draw.id,) for draw in draws]),
        }
        if self.params.guidance_scale > 1:
            away = self._middles[self.params.unconditional]
            inputs["negative_prompt_embeds"] = away.expand(len(draws), -1, -1)
        return inputs

    def renderer(self) -> FromNoise:
        """Samples from noise."""
        p = self.params
        return FromNoise(p.guidance_scale, p.scheduler, p.num_inference_steps)

    def previews(self) -> "list[tuple[str, Domain]]":
        """Some images; columns are no classes."""
        return [(f"domain, spread {self.params.spread:g}", self)]

    def _xi(self, sigma: Shrunk, name: str) -> torch.Tensor:
        g = generator(self.params.seed, "domain", name)
        eps = torch.randn(self.bank.shape, generator=g)
        return sigma.draw(eps.flatten(), torch.randn(len(sigma.rows), generator=g)).view_as(eps)

    def _covariance(self) -> Shrunk:
        try:
            # Sorted by id: the order of images decides nothing.
            rows = sorted(range(len(self.bank.ids)), key=self.bank.ids.__getitem__)
            return shrunk(self.bank.embeds(rows).flatten(1) - self._mean.flatten())
        except ValueError as error:
            raise UserError(
                f"domain: spread = {self.params.spread}: embeddings do not differ and have no covariance; "
                "add images, or set it to 0"
            ) from error

    def _middle(self, name: Middle) -> torch.Tensor:
        """[K, D]."""
        if name == "mean":
            return self._mean
        return self._open().empty_prompt_embeds(self.bank.shape[0]).cpu().float()
