"""Diffusion Inversion (Zhou, Sahak, Ba 2023), stage 1: one conditioning embedding for every image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.execution.memory import FittingBatch
from dinv.execution.parts import PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.files import part_paths
from dinv.images.image_set import ImageSet, ImageSetReader
from dinv.inversion.bank import (
    EMBEDDINGS,
    bank_statistics,
    load_part,
    loss_curves,
    save_bank,
    save_statistics,
)
from dinv.inversion.base import Loss, OpenModel, Place
from dinv.inversion.invert import ImageEmbeddingsParams, invert

PART_SIZE = 100  # images; a constant of the format, not a setting


class ImageEmbeddings:
    """Writes parts of an EmbeddingBank, and its mean and spread."""

    Params = ImageEmbeddingsParams

    @staticmethod
    def learn(params: ImageEmbeddingsParams, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """One embedding per image; its digest covers the image's pixels, label and id."""
        key = [*place.key, params.model_dump(exclude={"method"})]
        worker = partial(InvertWorker, place.open_model, params, place.execution.micro_batch)
        plan = make_plan(real, key, params.num_visits)
        run_parts(plan, PartStore("invert"), EMBEDDINGS, worker, place.execution, output)
        parts = part_paths(output, EMBEDDINGS.suffix, "embeddings")
        save_statistics(bank_statistics(map(load_part, parts), len(real.class_names)), output)
        return loss_curves(map(load_part, parts))


def make_plan(images: ImageSetReader, key: list[object], num_visits: int) -> Plan:
    """Every image, in parts."""

    def digests(rows: Sequence[int]) -> list[str]:
        return images.take(rows).digests(key)

    def task(rows: Sequence[int]) -> InvertTask:
        return InvertTask.of(images.take(rows))

    return Plan("invert part", len(images), PART_SIZE, digests, task, "visit", num_visits)


@dataclass(frozen=True)
class InvertTask:
    """uint8 images [B, H, W, C] at the model's resolution, int64 labels [B], B ids."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]

    @classmethod
    def of(cls, images: ImageSet) -> "InvertTask":
        """What a worker needs of an image set."""
        return cls(images.images, images.labels, images.ids)


class InvertWorker:
    """Task -> bytes of an embedding part."""

    def __init__(self, open_model: OpenModel, params: ImageEmbeddingsParams, micro_batch: int):
        self.model, self.params, self.batch = open_model(), params, FittingBatch(micro_batch)

    def compute(self, task: InvertTask, advance: Callable[[int], None]) -> bytes:
        """Learn one embedding per image."""
        images, labels = torch.from_numpy(task.images), torch.from_numpy(task.labels)
        learn = partial(invert, self.model, images, labels, task.ids, self.params)
        bank = self.batch.run(learn, advance)
        stored = bank.to(getattr(torch, self.params.storage_dtype))
        return to_bytes(lambda path: save_bank(stored, path))
