"""The workers of the generate stage: render requests, and reconstruct real images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.memory import FittingBatch
from dinv.execution.parts import to_bytes
from dinv.images.image_set import ImageSet, write_parquet
from dinv.images.resize import convert_batch
from dinv.strategies.reconstruction import reconstruct
from dinv.strategies.strategy import Request


@dataclass(frozen=True)
class Table:
    """All of an image set but its pixels; `shape` is (H, W, C) that they are converted to."""

    shape: tuple[int, int, int]
    labels: NDArray[np.int64]
    ids: list[str]
    class_names: list[str]
    provenance: dict[str, list[Any]]

    def parquet(self, images: torch.Tensor) -> bytes:
        """A part with these pixels, uint8 [B, H', W', C'], in it."""
        pixels = convert_batch(images.numpy(), self.shape[0], self.shape[2])
        part = ImageSet(pixels, self.labels, self.ids, self.class_names, self.provenance)
        return to_bytes(lambda path: write_parquet(part, path))


@dataclass(frozen=True)
class RenderTask:
    """Images to render and what is known of them."""

    request: Request
    table: Table


class RenderWorker:
    """RenderTask -> bytes of an image set part."""

    def __init__(self, open_model: Callable[[], LatentDiffusion], micro_batch: int):
        self.model, self.batch = open_model(), FittingBatch(micro_batch)

    def compute(self, task: RenderTask, advance: Callable[[int], None]) -> bytes:
        """Render every image."""

        def render(size: int, advance: Callable[[int], None]) -> torch.Tensor:
            return _joined((r.render(self.model) for r in task.request.split(size)), advance)

        return task.table.parquet(self.batch.run(render, advance))


@dataclass(frozen=True)
class ReconstructTask:
    """Real images, uint8 [B, H, W, C] at the data's resolution."""

    images: NDArray[np.uint8]
    table: Table


class ReconstructWorker:
    """ReconstructTask -> bytes of an image set part."""

    def __init__(self, open_model: Callable[[], LatentDiffusion], micro_batch: int):
        self.model, self.batch = open_model(), FittingBatch(micro_batch)

    def compute(self, task: ReconstructTask, advance: Callable[[int], None]) -> bytes:
        """Pass every image through the VAE."""
        pixels = convert_batch(task.images, self.model.params.resolution, task.images.shape[3])
        images = torch.from_numpy(pixels)

        def decode(size: int, advance: Callable[[int], None]) -> torch.Tensor:
            return _joined((reconstruct(self.model, batch) for batch in images.split(size)), advance)

        return task.table.parquet(self.batch.run(decode, advance))


def _joined(batches: Iterable[torch.Tensor], advance: Callable[[int], None]) -> torch.Tensor:
    """Compute every batch and join them."""
    done = []
    for batch in batches:
        done.append(batch)
        advance(len(batch))
    return torch.cat(done)
