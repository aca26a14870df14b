"""The frozen networks whose features `dinv check` classifies."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.feature_params import UNetFeatures
from dinv.classify.frozen import find_network
from dinv.diffusion.loading import load_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.execution.code import code_digest
from dinv.features.cache import Extraction, Network
from dinv.features.extractors import Extractor
from dinv.features.params import FeatureNetwork
from dinv.files import digest_of
from dinv.images.resize import convert_batch
from dinv.section import did_you_mean

UNET = "unet"
BLOCK, TIMESTEP = "up_0", 30  # right most often on cells among four blocks and 30, 100, 250


def network_for_labels(name: str, model: ModelParams, measured: Mapping[str, FeatureNetwork]) -> Network:
    """The model's own UNet, or a network of measure.features; raises UserError if there is none."""
    if name != UNET:
        return named_network(name, measured)
    where = {"network": UNET, "block": BLOCK, "timestep": TIMESTEP, "pooling": "mean"}
    return find_network(UNetFeatures.model_validate({**model.model_dump(), **where}))


def named_network(name: str, measured: Mapping[str, FeatureNetwork]) -> Extraction:
    """A network of measure.features; raises UserError if there is none of that name."""
    if name not in measured:
        known = ", ".join([UNET, *measured])
        hint = did_you_mean(name, {UNET: None, **measured})
        raise UserError(f"--features {name}: no such block of measure.features{hint}; there are {known}")
    return Extraction.of(measured[name])


@dataclass(frozen=True)
class Seen:
    """A network that sees images as classifiers do, at `side` pixels; through the autoencoder, or not.

    It is not the model's own UNet: that sees latents only, so what the autoencoder loses it never had.
    """

    inner: Extraction
    side: int
    folder: Path
    model: ModelParams
    reconstructed: bool

    @property
    def network(self) -> str:
        """Its name in progress bars."""
        return f"{self.inner.network} of {'reconstructions' if self.reconstructed else 'originals'}"

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of weights, settings and code."""
        through = [model_digest(self.folder), self.model.dtype] if self.reconstructed else []
        return digest_of([self.inner.digest, self.side, through, code_digest("dinv.intake.networks")])

    def open(self, device: torch.device) -> Extractor:
        """Load both; images are of the model's side, uint8 [B, H, H, C]."""
        extract = self.inner.open(device)
        if not self.reconstructed:
            return lambda images: extract(self._as_seen(images, images.shape[3]))
        model = load_model(self.folder, self.model, device)

        def features(images: NDArray[np.uint8]) -> torch.Tensor:
            back = model.decode(model.encode(torch.from_numpy(images)).mean)
            return extract(self._as_seen(back.numpy(), images.shape[3]))

        return features

    def _as_seen(self, images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
        return convert_batch(images, self.side, channels)
