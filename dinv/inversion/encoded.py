"""Embeddings that a model's own image encoder gives, once for every image."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dinv.diffusion.image_encoder import FOLDERS, Encode, image_encoder_folder, load_image_encoder
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.errors import UserError
from dinv.execution.code import code_digest
from dinv.execution.params import ExecutionParams
from dinv.features.cache import extract
from dinv.features.location import location_digest
from dinv.files import digest_of
from dinv.images.image_set import ImageSetReader


@dataclass(frozen=True)
class EncoderNetwork:
    """The encoder of a model's folder, as `extract` takes networks."""

    folder: Path
    network: str = "image encoder"

    @cached_property
    def digest(self) -> str:
        """Of weights, preprocessing and the code that runs them."""
        files = [location_digest(self.folder / name) for name in FOLDERS]
        return digest_of([*files, code_digest("dinv.diffusion.image_encoder")])

    def open(self, device: torch.device) -> Encode:
        """Load it."""
        return load_image_encoder(self.folder, device)


def encoder_embeds(model: LatentDiffusion, real: ImageSetReader, user: str) -> torch.Tensor:
    """image_embeds of all images, float32 [N, D]; finished ones are used again.

    Raises:
        UserError: the model has no image encoder, or one that does not fit its UNet.
    """
    network = EncoderNetwork(image_encoder_folder(model, user).absolute())
    found = extract(real, np.arange(len(real)), network, ExecutionParams.here())
    if found.shape[1] != model.width:
        raise UserError(
            f"{user}: the image encoder of model.path = {model.params.path!r} makes "
            f"{found.shape[1]} numbers, its UNet's cross-attention takes {model.width}; its parts "
            "belong to different models"
        )
    return torch.from_numpy(found)
