"""The seam for generation strategies: plan what to draw, then draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Draw:
    """One image to be made: the row it comes from, its partner's row and weight, which variant."""

    row: int
    variant: int
    partner: int | None
    interpolation: float


class Strategy(Protocol):
    """A way to make images from labelled ones. A new strategy is one file."""

    def plan(self) -> list[Draw]:
        """Every image to make, in a stable order; pure, without the model."""
        ...

    def fingerprint(self, draws: Sequence[Draw]) -> Any:
        """JSON-serialisable value that changes whenever the images of `draws` would."""
        ...

    def render(self, draws: Sequence[Draw]) -> torch.Tensor:
        """Make the images: uint8 [B, H, W, C] at the model's resolution, on the CPU."""
        ...

    def provenance(self, draws: Sequence[Draw]) -> dict[str, list[Any]]:
        """Columns that tell where each image came from."""
        ...
