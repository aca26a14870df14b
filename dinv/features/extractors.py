"""Networks whose features compare image sets, by name: uint8 [B, H, W, C] -> float32 [B, D].

Each brings its own scaling and normalisation. A new one is a function here and a line in the table.
"""

import io
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.features.network import IMAGE_SIZE, load_network
from dinv.hub import DAMAGED, load_whole
from dinv.images.resize import convert_batch

Extractor = Callable[[NDArray[np.uint8]], torch.Tensor]


def convnet(location: Path, device: torch.device) -> Extractor:
    """The 128 features of a network of network.py, of images at 32 pixels; they know one domain."""
    network = load_network(location).to(device)

    def extract(images: NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(convert_batch(images, IMAGE_SIZE, network.num_channels)).to(device)
        return network(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)

    return extract


def inception(location: Path, device: torch.device) -> Extractor:
    """The 2,048 features of FID: torch-fidelity's Inception-v3 with the weights of 2015-12-05."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: PLC0415 - optional
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise UserError("measure.features: inception needs pip install -e '.[fid]'") from error
    # torch-fidelity unpickles what it is given; it is given only tensors that were read without that.
    weights = io.BytesIO()
    torch.save(torch.load(location, map_location="cpu", weights_only=True), weights)
    weights.seek(0)
    network = FeatureExtractorInceptionV3("inception", ["2048"], weights).to(device)
    return lambda images: network(_rgb(images).to(device))[0]


def dinov2(location: Path, device: torch.device) -> Extractor:
    """DINOv2's normalised class token (Oquab et al. 2023), through transformers."""
    from transformers import AutoModel, BitImageProcessor  # noqa: PLC0415 - seconds, for the others in vain

    processor = BitImageProcessor.from_pretrained(location, local_files_only=True)
    network = load_whole(AutoModel, location, dtype=torch.float32)
    return _transformer(processor, network, "pooler_output", device)


def clip(location: Path, device: torch.device) -> Extractor:
    """CLIP's projected image embedding (Radford et al. 2021), through transformers."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection  # noqa: PLC0415 - as above

    processor = CLIPImageProcessor.from_pretrained(location, local_files_only=True)
    network = load_whole(CLIPVisionModelWithProjection, location, dtype=torch.float32)
    return _transformer(processor, network, "image_embeds", device)


EXTRACTORS: dict[str, Callable[[Path, torch.device], Extractor]] = {
    "convnet": convnet,
    "inception": inception,
    "dinov2": dinov2,
    "clip": clip,
}


def load_extractor(name: str, location: Path, device: torch.device) -> Extractor:
    """Load a network; raises UserError when its files are missing, damaged or of another kind."""
    try:
        extract = EXTRACTORS[name](location, device)
    except (*DAMAGED, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"measure.features: {name} at {location} cannot be loaded ({reason})") from error
    return torch.no_grad()(lambda images: extract(images).float().cpu())


def _transformer(processor: Any, network: torch.nn.Module, output: str, device: torch.device) -> Extractor:
    network.to(device)

    def extract(images: NDArray[np.uint8]) -> torch.Tensor:
        pixels = processor(images=list(_rgb(images)), return_tensors="pt")["pixel_values"]
        return getattr(network(pixel_values=pixels.to(device)), output)

    return extract


def _rgb(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, 3, H, W]; grey images are repeated."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1).contiguous()
