"""Image encoders of image-variation models (Pinkney 2022): CLIP, in the place of a text encoder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model
from dinv.errors import UserError
from dinv.hub import DAMAGED, load_whole

FOLDERS = ("image_encoder", "feature_extractor")
Encode = Callable[[NDArray[np.uint8]], torch.Tensor]


def image_encoder_folder(model: LatentDiffusion, user: str) -> Path:
    """The folder of a loaded model that has an image encoder.

    Args:
        model: the frozen model.
        user: what needs the encoder, for the message.

    Raises:
        UserError: it has none.
    """
    folder = fetch_model(model.params, local_files_only=True)
    if not all((folder / name).is_dir() for name in FOLDERS):
        raise UserError(
            f"{user}: needs an image encoder, and model.path = {model.params.path!r} has no "
            "image_encoder/ and feature_extractor/; use an image-variation model in diffusers layout"
        )
    return folder


def load_image_encoder(folder: Path, device: torch.device) -> Encode:
    """uint8 [B, H, W, C] -> image_embeds float32 [B, D] on the CPU, as StableDiffusionImageVariationPipeline.

    Raises:
        UserError: the encoder is damaged.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection  # noqa: PLC0415 - takes seconds

    try:
        processor = CLIPImageProcessor.from_pretrained(folder / FOLDERS[1], local_files_only=True)
        encoder = load_whole(CLIPVisionModelWithProjection, folder / FOLDERS[0], dtype=torch.float32)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: its image encoder cannot be loaded ({reason}); fetch it again") from error
    encoder.to(device)

    @torch.no_grad()
    def encode(images: NDArray[np.uint8]) -> torch.Tensor:
        rgb = np.broadcast_to(images, (*images.shape[:3], 3))
        pixels = processor(images=list(rgb), return_tensors="pt").pixel_values
        return encoder(pixels.to(device)).image_embeds.float().cpu()

    return encode
