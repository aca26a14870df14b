"""What is particular to the images of one domain: a YAML file in domains/."""

from pathlib import Path
from typing import Annotated, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from dinv.errors import UserError
from dinv.section import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

IMAGE_SIZE = 32
Blocks = Annotated[tuple[PositiveInt, ...], Field(min_length=2, strict=False)]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


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


class HeldOut(Section):
    """Images of a source that training leaves out: the last ones of some classes, in the source's order."""

    images_per_class: PositiveInt
    classes: Names  # first of their names


class Source(Section):
    """Images of one kind of file, and what text says of them."""

    path: str  # below --images: a folder of mosaics (mosaics.py) or a Parquet file
    captions: Names  # {} stands for a name of the image's class
    held_out: HeldOut | None = None
    unseen: str | None = None  # a further file like `path` that training does not see
    shown: bool = True  # whether its licence lets a picture show images of it


class Domain(Section):
    """One file of domains/. With `sources` it is one of captioned images from several places."""

    channels: Literal[1, 3]
    first_image: Annotated[int, Field(ge=0)] = 0  # earlier ones are kept for labelled tasks
    sources: Annotated[tuple[Source, ...], Field(strict=False)] = ()
    symmetries: Literal[1, 2, 8]  # none, mirrored left to right, or every flip and quarter turn
    vae: Layered
    encoder: Training
    views: Views
    unet: Layered
    features: Training
    clip: Training | None = None  # this and the next of captioned images only
    image_encoder: Training | None = None


def load_domain(path: Path) -> Domain:
    """Read a domain; raises UserError when the file is missing or a key is wrong."""
    try:
        return Domain.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: not a domain ({reason}); see models/domains/satellite.yaml") from error


def symmetry(images: torch.Tensor, index: int) -> torch.Tensor:
    """One of the eight flips and quarter turns of images [..., H, W]; 0 changes nothing, 1 mirrors."""
    turned = torch.rot90(images, index // 2, (-2, -1))
    return turned.flip(-1) if index % 2 else turned


def random_symmetries(images: torch.Tensor, symmetries: int) -> torch.Tensor:
    """Images [B, C, H, W], each eighth of the batch under a symmetry drawn for it."""
    parts = images.chunk(8)
    drawn = torch.randint(symmetries, (len(parts),)).tolist()
    return torch.cat([symmetry(part, index) for part, index in zip(parts, drawn, strict=True)])
