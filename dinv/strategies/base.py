"""The seam for generation strategies: labelled images in, labelled images with their origin out.

A strategy is one file that defines its parameters and the class below, and one line of registry.py. Drawing
lots, rendering, resuming, storing and comparing are the same for all: see worker.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.images.image_set import ImageSetReader
from dinv.section import Section

OpenModel = Callable[[], LatentDiffusion]
Inputs = dict[str, torch.Tensor]
Facts = dict[str, int | float | str]  # columns of the image set: values of one image


class StrategyParams(Section):
    """What every block of `generate` has.

    `input` is the folder that images are made from: what `invert` learned, the real training images, a pool.
    """

    strategy: str
    input: str


@dataclass(frozen=True)
class Draw:
    """One image to be made.

    Attributes:
        id: its name in the image set, distinct; keys its randomness.
        label: class of the image that is made, which need not be its source's.
        source_id: the real image that it is made from, None if there is no one such.
        facts: further columns of the image set, the same keys for every draw of a strategy.
        probabilities: of each class, in place of one sure label; None: the label is sure.
    """

    id: str
    label: int
    source_id: str | None = None
    facts: Facts = field(default_factory=dict)
    probabilities: tuple[float, ...] | None = None


class Renderer(Protocol):
    """Makes images from rows of inputs. A frozen dataclass, since its fields are part of each image's digest
    and it travels to workers.
    """

    uses_model: ClassVar[bool]

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Called once per task: returns inputs, a row per image -> uint8 [B, H, W, C] on the CPU."""
        ...


@dataclass(frozen=True)
class Material:
    """What there is to make images from.

    Attributes:
        real: the labelled training images at the model's resolution.
        folder: the block's `input`.
        open_model: loads the frozen model, once.
    """

    real: ImageSetReader
    folder: Path
    open_model: OpenModel


class Strategy(Protocol):
    """A way to make images from labelled ones; on the CPU and without a model until it renders."""

    Params: ClassVar[type[StrategyParams]]

    def __init__(self, params: Any, material: Material):
        """Raise UserError where the material does not allow what the parameters ask for."""
        ...

    def __len__(self) -> int:
        """How many images there are to make."""
        ...

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Some of the images to make, in a stable order: more images only append."""
        ...

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """All that the renderer needs to know of each draw, a row each."""
        ...

    def renderer(self) -> Renderer:
        """What makes the images."""
        ...

    def previews(self) -> "list[tuple[str, Strategy]]":
        """Rows of the grid: what each shows, and what draws it."""
        ...
