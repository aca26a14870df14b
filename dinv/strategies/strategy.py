"""The seam for generation strategies: say what to draw, then draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Draw:
    """One image to be made: the row it comes from, its partner's row and weight, which variant."""

    row: int
    variant: int
    partner: int | None
    interpolation: float


class Request(Protocol):
    """All that is needed to make some images, picklable: it travels to a worker."""

    def render(self, model: LatentDiffusion) -> torch.Tensor:
        """Make the images: uint8 [B, H, W, C] at the model's resolution, on the CPU."""
        ...

    def split(self, size: int) -> "Sequence[Request]":
        """The same images in requests of at most `size`."""
        ...


class Strategy(Protocol):
    """A way to make images from labelled ones, pure and without a model. A new one is one file."""

    def __len__(self) -> int:
        """How many images there are to make."""
        ...

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """Some of the images to make, in a stable order."""
        ...

    def fingerprints(self, draws: Sequence[Draw]) -> list[Any]:
        """Per image a JSON-serialisable value that changes whenever the image would."""
        ...

    def request(self, draws: Sequence[Draw]) -> Request:
        """What a worker needs to make the images."""
        ...

    def provenance(self, draws: Sequence[Draw]) -> dict[str, list[Any]]:
        """Columns that tell where each image came from."""
        ...
