"""Frozen networks whose features a learner classifies, named and located by its parameters."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from dinv.classify.feature_params import UNetFeatures, ViewedNetwork
from dinv.diffusion.features import unet_features
from dinv.diffusion.loading import fetch_model, load_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.execution.code import code_digest
from dinv.features.averaged import Averaged
from dinv.features.cache import Extraction, Network
from dinv.features.extractors import Extractor
from dinv.features.params import FeatureNetwork
from dinv.files import digest_of


@dataclass(frozen=True)
class UNet:
    """A UNet found on this machine, as dinv.features.cache wants its networks."""

    features: UNetFeatures
    folder: Path

    @classmethod
    def of(cls, features: UNetFeatures) -> "UNet":
        """Find the model; raises UserError when it is not there."""
        return cls(features, fetch_model(_model(features)).absolute())

    @property
    def network(self) -> str:
        """Its name in progress bars."""
        return self.features.network

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of weights, settings and code."""
        settings = self.features.model_dump(exclude={"path", "views"})
        return digest_of([model_digest(self.folder), settings, code_digest("dinv.diffusion.features")])

    def open(self, device: torch.device) -> Extractor:
        """Load the model."""
        f = self.features
        return unet_features(load_model(self.folder, _model(f), device), f.block, f.timestep, f.pooling)


def find_network(features: FeatureNetwork | UNetFeatures) -> Network:
    """What extracts these features; raises UserError when its files are not there."""
    network = UNet.of(features) if isinstance(features, UNetFeatures) else Extraction.of(features)
    views = features.views if isinstance(features, ViewedNetwork | UNetFeatures) else "none"
    return network if views == "none" else Averaged(network, views)


def _model(features: UNetFeatures) -> ModelParams:
    return ModelParams(path=features.path, dtype=features.dtype, resolution=features.resolution)
