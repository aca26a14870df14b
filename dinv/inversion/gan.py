"""A class-conditional GAN trained on the labelled images, with DiffAugment (Zhao et al. 2020, 2006.10738)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.execution.device import resolve_device
from dinv.execution.parts import FILES, PartStore, Plan, scratch_root, to_bytes
from dinv.execution.run import run_parts
from dinv.files import digest_of
from dinv.gan.checkpoint import Checkpoint
from dinv.gan.store import Shape, read_losses, save_gan, to_floats
from dinv.gan.training import GanSettings, Training, train
from dinv.images.image_set import ImageSetReader
from dinv.images.resize import convert_batch
from dinv.inversion.base import Loss, MethodParams, Place
from dinv.inversion.invert import interval_means

NETWORKS = ("generator", "discriminator")  # columns of the losses, kinds of the curve


class GanParams(MethodParams, GanSettings):
    """The block of `invert`: GanSettings."""


@dataclass(frozen=True)
class GanTask:
    """Labelled uint8 images [N, H, H, C], and the digest of all that determines the result."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: list[str]
    digest: str

    @property
    def checkpoint(self) -> Checkpoint:
        """Where its training is kept until it ends."""
        return Checkpoint(scratch_root() / "gan" / f"{self.digest}.checkpoint")


class GanMethod:
    """Writes one safetensors file: the moving average of the generator, and the losses."""

    Params = GanParams

    @staticmethod
    def learn(params: GanParams, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """Train on all images; resumes from its last checkpoint, to the same bytes on a CPU."""
        # Of the key only the code: the diffusion model is not used, so another one changes nothing.
        task = make_task(params, real, place.key[:1])
        plan = Plan("gan", 1, 1, lambda rows: [task.digest], lambda rows: task, "step", params.num_steps)
        worker = partial(GanWorker, params, place.execution.device)
        run_parts(plan, PartStore("gan"), FILES, worker, place.execution, output)
        task.checkpoint.remove()
        ends, means = interval_means(read_losses(output))
        return [
            Loss(kind, int(end), round(float(row[i]), 6))
            for i, kind in enumerate(NETWORKS)
            for end, row in zip(ends, means, strict=True)
        ]


def make_task(params: GanParams, real: ImageSetReader, key: Sequence[object]) -> GanTask:
    """All images in the order of ids, so that no other order of the image set changes the result."""
    rows = sorted(range(len(real)), key=lambda row: real.ids[row])
    images = real.take(rows)
    pixels = convert_batch(images.images, params.resolution, images.images.shape[3])
    digest = digest_of([*key, params.model_dump(exclude={"method"}), images.digests([]), real.class_names])
    return GanTask(pixels, images.labels, real.class_names, digest)


@dataclass
class GanWorker:
    """Task -> bytes of the trained generator."""

    params: GanParams
    device_name: str
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = resolve_device(self.device_name)

    def compute(self, task: GanTask, advance: Callable[[int], None]) -> bytes:
        """Train to the end."""
        images = to_floats(task.images).to(self.device)
        labels, num_classes = torch.from_numpy(task.labels).to(self.device), len(task.class_names)
        trainer = train(Training(images, labels, num_classes), self.params, task.checkpoint, advance)
        side, channels = task.images.shape[2:]
        shape = Shape(self.params.latent_size, self.params.generator_width, num_classes, side, channels)
        return to_bytes(lambda path: save_gan(trainer.average, shape, task.class_names, trainer.losses, path))
