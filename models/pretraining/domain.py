"""What is particular to the images of one domain: a YAML file in domains/, and how its images are read."""

import gzip
import io
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from pydantic import Field, ValidationError

from dinv.errors import UserError
from dinv.images.resize import to_square
from dinv.section import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

IMAGE_SIZE = 32
Blocks = Annotated[tuple[PositiveInt, ...], Field(min_length=2, strict=False)]


class Training(Section):
    """How long one network is trained."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat


class Layered(Training):
    """A network of the given widths, one per resolution."""

    block_out_channels: Blocks


class Views(Section):
    """How far two views of one image may differ: what the image encoder learns to overlook."""

    rotation: NonNegativeFloat  # degrees, either way
    zoom: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]  # side of the part shown
    stretch: NonNegativeFloat  # standard deviations from here on; this one per axis
    shift: NonNegativeFloat  # in half sides
    gamma: NonNegativeFloat  # of its logarithm, as are the next three
    brightness: NonNegativeFloat
    contrast: NonNegativeFloat
    tint: NonNegativeFloat  # brightness of each colour
    erased: Fraction  # share of the views with an erased patch
    border: Literal["black", "reflection"]  # what lies beyond the image


class Domain(Section):
    """One file of domains/."""

    channels: Literal[1, 3]
    first_image: Annotated[int, Field(ge=0)]  # earlier ones are kept for labelled tasks
    symmetries: Literal[1, 2, 8]  # none, mirrored left to right, or every flip and quarter turn
    vae: Layered
    encoder: Training
    views: Views
    unet: Layered
    features: Training


def load_domain(path: Path) -> Domain:
    """Read a domain; raises UserError when the file is missing or a key is wrong."""
    try:
        return Domain.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a domain ({reason}); see models/domains/satellite.yaml") from error


def load_images(path: Path, domain: Domain) -> torch.Tensor:
    """The images from `first_image` on, float32 [N, C, 32, 32] in [-1, 1].

    Args:
        path: idx3 file (.gz; padded with black) or Parquet file with encoded images in column `image`
            (resized as dinv's data stage does).
        domain: gives the number of channels.
    """
    images = _from_idx(path) if path.suffix == ".gz" else _from_parquet(path, domain)
    images = images[domain.first_image :]
    if not len(images):
        raise UserError(f"{path}: no image from number {domain.first_image} on; check --images and --domain")
    return images.float() / 127.5 - 1


def load_labels(path: Path, domain: Domain) -> torch.Tensor:
    """Labels of the images that `load_images` gives, int64 [N]: idx1 file, or column `class`."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            labels = np.frombuffer(file.read()[8:], np.uint8).astype(np.int64)
    else:
        names = pq.read_table(path, columns=["class"])["class"].to_numpy()
        labels = np.unique(names.astype(str), return_inverse=True)[1]
    return torch.from_numpy(labels[domain.first_image :].copy())


def _from_idx(path: Path) -> torch.Tensor:
    with gzip.open(path) as file:
        raw = file.read()
    images = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    return F.pad(images, (2, 2, 2, 2))


def _from_parquet(path: Path, domain: Domain) -> torch.Tensor:
    mode = "L" if domain.channels == 1 else "RGB"
    images = [
        to_square(Image.open(io.BytesIO(entry["bytes"].as_py())), IMAGE_SIZE, "center_crop", mode)
        for entry in pq.read_table(path, columns=["image"])["image"]
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def symmetry(images: torch.Tensor, index: int) -> torch.Tensor:
    """One of the eight flips and quarter turns of images [..., H, W]; 0 changes nothing, 1 mirrors."""
    turned = torch.rot90(images, index // 2, (-2, -1))
    return turned.flip(-1) if index % 2 else turned
