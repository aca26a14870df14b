"""The worker of the invert stage: learns the embeddings of one part."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.memory import FittingBatch
from dinv.execution.parts import to_bytes
from dinv.images.image_set import ImageSet
from dinv.images.resize import convert_batch
from dinv.inversion.bank import save_bank
from dinv.inversion.invert import invert
from dinv.inversion.params import InvertParams


@dataclass(frozen=True)
class InvertTask:
    """uint8 images [B, H, W, C] at the data's resolution, int64 labels [B], B ids."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]

    @classmethod
    def of(cls, images: ImageSet) -> "InvertTask":
        """What a worker needs of an image set."""
        return cls(images.images, images.labels, images.ids)


class InvertWorker:
    """Task -> bytes of an embedding part."""

    def __init__(self, open_model: Callable[[], LatentDiffusion], params: InvertParams, micro_batch: int):
        self.model, self.params, self.batch = open_model(), params, FittingBatch(micro_batch)

    def compute(self, task: InvertTask, advance: Callable[[int], None]) -> bytes:
        """Learn one embedding per image."""
        pixels = convert_batch(task.images, self.model.params.resolution, task.images.shape[3])
        images, labels = torch.from_numpy(pixels), torch.from_numpy(task.labels)
        learn = partial(invert, self.model, images, labels, task.ids, self.params)
        bank = self.batch.run(learn, advance)
        stored = bank.to(getattr(torch, self.params.storage_dtype))
        return to_bytes(lambda path: save_bank(stored, path))
