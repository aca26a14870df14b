"""The worker that extracts features, and features as parts: safetensors files of one [N, D] array."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.memory import FittingBatch
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import Codec, to_bytes
from dinv.features.extractors import Extractor
from dinv.files import part_paths

Features = NDArray[np.float32]


class FeatureWorker:
    """uint8 [B, H, W, C] -> bytes of their features, float32 [B, D]."""

    def __init__(self, open_network: Callable[[torch.device], Extractor], execution: ExecutionParams):
        self.extract = open_network(resolve_device(execution.device))
        self.batch = FittingBatch(execution.micro_batch)

    def compute(self, images: NDArray[np.uint8], advance: Callable[[int], None]) -> bytes:
        """Extract them all."""

        def extract(size: int, advance: Callable[[int], None]) -> torch.Tensor:
            done = []
            for i in range(0, len(images), size):
                done.append(self.extract(images[i : i + size]))
                advance(len(done[-1]))
            return torch.cat(done)

        features = self.batch.run(extract, advance).numpy()
        return to_bytes(lambda path: write_features(features, path))


def read_features(path: Path) -> Features:
    """Features of one part; raises UserError when it is damaged."""
    try:
        return load_file(path)["features"]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); run dvc repro measure") from error


def write_features(features: Features, path: Path) -> None:
    """Write one part; equal features give equal bytes."""
    save_file({"features": np.ascontiguousarray(features)}, path)


FEATURES: Codec[Features] = Codec(
    ".safetensors",
    read_features,
    write_features,
    lambda x, rows: x[list(rows)],
    np.concatenate,
)


def load_features(folder: Path) -> Features:
    """All parts of a folder, in order, float32 [N, D]."""
    return np.concatenate([read_features(path) for path in part_paths(folder, FEATURES.suffix, "features")])
