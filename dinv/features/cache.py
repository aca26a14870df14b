"""Features of images, extracted once: whatever asks for them shares the finished parts."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dinv.execution.code import code_digest
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan
from dinv.execution.run import run_parts
from dinv.features.location import locate, location_digest
from dinv.features.params import FeatureNetwork
from dinv.features.worker import FEATURES, Features, FeatureWorker, load_features
from dinv.files import bytes_digest, digest_of
from dinv.images.image_set import ImageSet

PART_SIZE = 200  # images; a constant of the format, not a setting


@dataclass(frozen=True)
class Extraction:
    """A network found on this machine; `digest` covers its weights and the code that runs it."""

    network: str
    location: Path

    @classmethod
    def of(cls, params: FeatureNetwork, local_files_only: bool = False) -> "Extraction":
        """Find the network, on the hub if need be; raises UserError when it is not there."""
        return cls(params.network, locate(params.network, params.path, local_files_only))

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex."""
        code = code_digest("dinv.features.extractors")
        return digest_of([self.network, location_digest(self.location), code])


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
    extraction: Extraction,
    execution: ExecutionParams,
    output: Path | None = None,
) -> Features:
    """Features of some images, float32 [N, D], in the order of `rows`.

    Parts are keyed by network and pixels only, so that stages share them. They are also written to `output`,
    if given, as part-00000.safetensors, part-00001.safetensors, ...
    """
    plan = _plan(f"{extraction.network} features", reader, np.asarray(rows, np.int64), extraction.digest)
    worker = partial(FeatureWorker, extraction.network, extraction.location.absolute(), execution)
    with tempfile.TemporaryDirectory() as temporary:
        folder = output or Path(temporary) / "features"
        run_parts(plan, PartStore("features"), FEATURES, worker, execution, folder)
        return load_features(folder)


def _plan(name: str, reader: Pictures, chosen: NDArray[np.int64], key: str) -> Plan:
    """One item per chosen image; its digest covers the pixels and their shape, not label or id."""
    common = digest_of([key, reader.shape]).encode()

    def pixels(rows: Sequence[int]) -> NDArray[np.uint8]:
        return reader.take(chosen[list(rows)].tolist()).images

    def digests(rows: Sequence[int]) -> list[str]:
        return [bytes_digest(common, image.tobytes()) for image in pixels(rows)]

    return Plan(name, len(chosen), PART_SIZE, digests, pixels)
