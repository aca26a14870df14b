"""Samples of a GAN that method `gan` of stage `invert` trained on the labelled images; no diffusion model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.features.location import location_digest
from dinv.features.watched import FrozenNetwork
from dinv.gan.store import Gan, load_gan
from dinv.images.image_set import ImageSetReader
from dinv.rng import generator
from dinv.section import PositiveFloat, PositiveInt, Seed
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel, StrategyParams


class GanStrategyParams(StrategyParams):
    """`input` is what `gan` learned; latents are `latent_std` times N(0, I), 1 as in training."""

    num_images_per_class: PositiveInt
    latent_std: PositiveFloat
    seed: Seed


@dataclass(frozen=True)
class OfGan:
    """x = G(z, y). Inputs: `latents` float32 [B, Z]; `label` int64 [B]."""

    uses_model: ClassVar[bool] = False
    network: FrozenNetwork

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the generator."""
        gan = load_gan(self.network.place, resolve_device("auto"))
        return lambda inputs: gan.images(inputs["latents"], inputs["label"])


def frozen_gan(folder: Path, real: ImageSetReader, user: str) -> tuple[Gan, FrozenNetwork]:
    """The GAN of a folder, on the CPU, and as a part of a renderer.

    Raises:
        UserError: there is none, or it was trained for other classes.
    """
    gan = load_gan(folder, torch.device("cpu"))
    if gan.class_names != real.class_names:
        raise UserError(
            f"{user}: {folder} was trained for the classes {', '.join(gan.class_names)}, the task has "
            f"{', '.join(real.class_names)}; run dvc repro invert"
        )
    return gan, FrozenNetwork("gan", location_digest(folder), folder)


class GanSamples:
    """As many images of each class that has training images, from noise; no real image is looked at."""

    Params = GanStrategyParams

    def __init__(self, params: GanStrategyParams, material: Material):
        self.params, self.class_names = params, material.real.class_names
        gan, self._network = frozen_gan(material.folder, material.real, "gan")
        self._latent_size = gan.generator.latent_size
        self._labels = np.unique(material.real.labels).tolist()

    def __len__(self) -> int:
        return self.params.num_images_per_class * len(self._labels)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The first image of every class, then the second, ...: more images only append."""
        return [self._draw(*divmod(i, len(self._labels))) for i in indices]

    def _draw(self, variant: int, place: int) -> Draw:
        p, label = self.params, self._labels[place]
        facts: Facts = {
            "variant": variant,
            "latent_std": p.latent_std,
            "seed": p.seed,
            "unet_passes": 0,
        }
        return Draw(f"{self.class_names[label]}#{variant}", label, None, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Latents and labels."""
        streams = [generator(self.params.seed, "gan-sample", draw.id) for draw in draws]
        z = torch.stack([torch.randn(self._latent_size, generator=g) for g in streams])
        return {"latents": self.params.latent_std * z, "label": torch.tensor([d.label for d in draws])}

    def renderer(self) -> OfGan:
        """The generator."""
        return OfGan(self._network)

    def previews(self) -> "list[tuple[str, GanSamples]]":
        """One image of each class."""
        return [("GAN", self)]
