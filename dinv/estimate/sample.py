"""A little of the task that params.yaml describes, and the frozen model: what stages are timed with."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model
from dinv.execution.device import resolve_device
from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.params import Params
from dinv.sources.task import Task, load_task

SECONDS = 4.0  # of one micro-batch that is timed, about: where that many images take longer, fewer are


@dataclass(frozen=True)
class Sample:
    """Some training images, in memory and as image sets in `folder`.

    Attributes:
        params: all of params.yaml.
        task: the labelled task.
        folder: an empty one, to be thrown away.
    """

    params: Params
    task: Task
    folder: Path

    @classmethod
    def of(cls, params: Params, folder: Path) -> "Sample":
        """Find the task's images; those of fetched sources are fetched. Raises UserError."""
        return cls(params, load_task(params.data), folder)

    @cached_property
    def device(self) -> torch.device:
        """Where stages run."""
        return resolve_device(self.params.execution.device)

    @cached_property
    def model(self) -> LatentDiffusion:
        """The frozen model."""
        return load_model(fetch_model(self.params.model), self.params.model, self.device)

    @property
    def micro_batch(self) -> int:
        """Images that are computed together, if there are as many."""
        return min(self.params.execution.micro_batch, len(self.rows))

    @cached_property
    def rows(self) -> list[int]:
        """A micro-batch of training images, or more so that each class has two."""
        wanted = max(self.params.execution.micro_batch, 2 * len(self.task.train.class_names))
        return in_turns(self.task.train.raw.labels)[:wanted].tolist()

    @cached_property
    def both(self) -> list[ImageSet]:
        """These images at data.resolution and at model.resolution."""
        sides = [self.params.data.resolution, self.params.model.resolution]
        return self.task.train.take_at(sides, self.rows)

    @property
    def small(self) -> ImageSet:
        """As classifiers see them."""
        return self.both[0]

    @cached_property
    def for_model(self) -> ImageSetReader:
        """As the model sees them."""
        save_image_set(self.both[1], self.folder / "train_model")
        return ImageSetReader(self.folder / "train_model")

    @property
    def num_train(self) -> int:
        """Labelled training images of the whole task."""
        return len(self.task.train)


def in_turns(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows so that classes take turns: the first of each class, then the second of each, ..."""
    place = np.zeros(len(labels), np.int64)
    for k in np.unique(labels):
        place[labels == k] = np.arange(int((labels == k).sum()))
    return np.lexsort((labels, place))
