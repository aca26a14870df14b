"""Networks beside the generator: where strategies and learners find them, and what identifies them."""

from dataclasses import InitVar, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.cache import Extraction, Pictures, extract
from dinv.features.extractors import Extractor, load_extractor
from dinv.features.location import location_digest
from dinv.features.params import FeatureNetwork
from dinv.hub import resolve


@dataclass(frozen=True)
class FrozenNetwork:
    """A network as part of a renderer: its digest counts, where it lies on this machine does not."""

    network: str
    digest: str
    location: InitVar[Path]

    def __post_init__(self, location: Path) -> None:
        object.__setattr__(self, "_place", location.absolute())

    @classmethod
    def of(cls, params: FeatureNetwork) -> "FrozenNetwork":
        """Find a feature network; raises UserError when it is not there."""
        found = Extraction.of(params)
        return cls(params.network, found.digest, found.location)

    @classmethod
    def at(cls, kind: str, path: str, patterns: tuple[str, ...]) -> "FrozenNetwork":
        """Find another network's files, fetched where `path` pins a repository of the hub."""
        if not Path(path).exists():
            raise UserError(f"{kind} at {path!r}: no such path; put the network there, or correct the path")
        location = resolve(Path(path), patterns)
        return cls(kind, location_digest(location), location)

    @property
    def place(self) -> Path:
        """Where it lies."""
        found: Path = self.__dict__["_place"]
        return found

    def extractor(self, device: torch.device) -> Extractor:
        """uint8 [B, H, W, C] -> features float32 [B, D] of length 1, on the CPU."""
        features = load_extractor(self.network, self.place, device)
        return lambda images: unit(features(images))

    def features_of(self, pictures: Pictures, rows: Any = None) -> NDArray[np.float32]:
        """Features of length 1 of all images or some rows, float32 [N, D]; finished ones are used again."""
        wanted = range(len(pictures)) if rows is None else rows
        found = extract(pictures, wanted, Extraction(self.network, self.place), ExecutionParams.here())
        return unit(torch.from_numpy(found)).numpy()


def unit(features: torch.Tensor) -> torch.Tensor:
    """Features [B, D] at length 1."""
    return features / features.norm(dim=1, keepdim=True).clamp_min(1e-12)
