"""Features of images, extracted once: whatever asks for them shares the finished parts."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.execution.code import code_digest
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan
from dinv.execution.run import run_parts
from dinv.features.extractors import Extractor, load_extractor
from dinv.features.location import locate, location_digest
from dinv.features.params import FeatureNetwork
from dinv.features.worker import FEATURES, Features, FeatureWorker, load_features
from dinv.files import bytes_digest, digest_of
from dinv.images.image_set import ImageSet

Pixels = Callable[[Sequence[int]], NDArray[np.uint8]]  # rows -> uint8 [B, H, W, C]
PART_SIZE = 200  # images; a constant of the format, not a setting


class Network(Protocol):
    """Something that has features of images."""

    @property
    def network(self) -> str:
        """What it is called in progress bars."""
        ...

    @property
    def digest(self) -> str:
        """Of all that determines the features, but for the images; in hex."""
        ...

    def open(self, device: torch.device) -> Extractor:
        """Load it; called once per worker, so the object is picklable."""
        ...


@dataclass(frozen=True)
class Extraction:
    """A network found on this machine; `digest` covers its weights and the code that runs it."""

    network: str
    location: Path

    @classmethod
    def of(cls, params: FeatureNetwork, local_files_only: bool = False) -> "Extraction":
        """Find the network, on the hub if need be; raises UserError when it is not there."""
        return cls(params.network, locate(params.network, params.path, local_files_only).absolute())

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex."""
        code = code_digest("dinv.features.extractors")
        return digest_of([self.network, location_digest(self.location), code])

    def open(self, device: torch.device) -> Extractor:
        """Load the network."""
        return load_extractor(self.network, self.location, device)


class Pictures(Protocol):
    """Images that are read by rows: an ImageSetReader, or a pool of other ones."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int]) -> ImageSet:
        """The given rows."""
        ...


def extract(
    reader: Pictures,
    rows: Sequence[int] | NDArray[np.int64],
    network: Network,
    execution: ExecutionParams,
    output: Path | None = None,
) -> Features:
    """Features of some images, float32 [N, D], in the order of `rows`.

    Parts are keyed by network and pixels only, so that stages share them. They are also written to `output`,
    if given, as part-00000.safetensors, part-00001.safetensors, ...
    """
    chosen = np.asarray(rows, np.int64)

    def pixels(rows: Sequence[int]) -> NDArray[np.uint8]:
        return reader.take(chosen[list(rows)].tolist()).images

    return _features(_plan(network, len(chosen), reader.shape, pixels), network, execution, output)


def extract_images(images: torch.Tensor, network: Network, execution: ExecutionParams) -> Features:
    """The same of uint8 [N, C, H, W], in memory or mapped; where all are known, no bar is shown."""

    def pixels(rows: Sequence[int]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(images[list(rows)].permute(0, 2, 3, 1).cpu().numpy())

    _, channels, height, width = images.shape
    plan = _plan(network, len(images), (height, width, channels), pixels)
    return _features(replace(plan, quiet=True), network, execution, None)


def _features(plan: Plan, network: Network, execution: ExecutionParams, output: Path | None) -> Features:
    worker = partial(FeatureWorker, network.open, execution)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / "features"
        run_parts(plan, PartStore("features"), FEATURES, worker, execution, folder)
        return load_features(folder)


def _plan(network: Network, n: int, shape: tuple[int, int, int], pixels: Pixels) -> Plan:
    """One item per image; its digest covers the pixels and their shape (H, W, C), not label or id."""
    common = digest_of([network.digest, shape]).encode()

    def digests(rows: Sequence[int]) -> list[str]:
        return [bytes_digest(common, image.tobytes()) for image in pixels(rows)]

    return Plan(f"{network.network} features", n, PART_SIZE, digests, pixels)
