"""Features that do not depend on how an image lies: means over its mirrored and turned views."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.execution.code import code_digest
from dinv.features.cache import Network
from dinv.features.extractors import Extractor
from dinv.files import digest_of

Views = Literal["none", "horizontal_flip", "dihedral"]


def views(images: NDArray[np.uint8], kind: Views) -> Iterator[NDArray[np.uint8]]:
    """uint8 [B, H, W, C] as they are; mirrored; in all eight positions of a square: 1, 2 or 8 views."""
    mirrored = (images,) if kind == "none" else (images, images[:, :, ::-1])
    for turns in range(4 if kind == "dihedral" else 1):
        for view in mirrored:
            yield np.ascontiguousarray(np.rot90(view, turns, axes=(1, 2)))


@dataclass(frozen=True)
class Averaged:
    """A network whose features are means over views, as dinv.features.cache wants its networks."""

    of: Network
    kind: Views

    @property
    def network(self) -> str:
        """Its name in progress bars."""
        return self.of.network

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the network, the views and the code that makes them."""
        return digest_of([self.of.digest, self.kind, code_digest("dinv.features.averaged")])

    def open(self, device: torch.device) -> Extractor:
        """Load the network."""
        extract = self.of.open(device)

        def mean(images: NDArray[np.uint8]) -> torch.Tensor:
            return torch.stack([extract(view) for view in views(images, self.kind)]).mean(0)

        return mean
