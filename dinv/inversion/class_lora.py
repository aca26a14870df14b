"""An embedding for every class and one low-rank adapter for all, learned together: what Diff-Mix fine-tunes.

Wang et al. 2024 (arXiv 2403.19600) join textual inversion (Gal et al. 2023) and DreamBooth with LoRA (Ruiz et
al. 2023, Hu et al. 2021) over the images of all classes; Diff-II (Wang et al. 2025) takes their recipe. As
everywhere here, embeddings go straight to cross-attention, without a text encoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from dinv.diffusion.lora import FILE, require_peft, save_adapter
from dinv.execution.parts import FILES, PartStore, Plan, scratch_root, to_bytes
from dinv.execution.run import run_parts
from dinv.files import atomic_write, digest_of
from dinv.gan.checkpoint import Checkpoint
from dinv.images.image_set import ImageSetReader
from dinv.inversion.bank import (
    EmbeddingBank,
    bank_statistics,
    load_bank,
    loss_curves,
    save_bank,
    save_statistics,
)
from dinv.inversion.base import Loss, OpenModel, Place
from dinv.inversion.invert import interval_means
from dinv.inversion.joint_training import Classes, ClassLoraParams, Trainer, train

BANK = f"part-00000{FILES.suffix}"


@dataclass(frozen=True)
class ClassLoraTask:
    """All images, uint8 [N, H, W, C] at the model's resolution, and the digest of what decides the result."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: list[str]
    digest: str

    @property
    def checkpoint(self) -> Checkpoint:
        """Where learning is kept until it ends."""
        return Checkpoint(scratch_root() / "class_lora" / f"{self.digest}.checkpoint")


class ClassLora:
    """Writes what `class_embeddings` does, and the adapter in the file that diffusers' pipelines load."""

    Params = ClassLoraParams

    @staticmethod
    def learn(params: ClassLoraParams, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """Learn from all images; resumes from its last checkpoint, to the same bytes on a CPU."""
        require_peft("class_lora")
        task, steps = make_task(params, real, place.key), params.num_visits
        plan = Plan("class_lora", 1, 1, lambda rows: [task.digest], lambda rows: task, "step", steps)
        worker = partial(ClassLoraWorker, place.open_model, params)
        run_parts(plan, PartStore("class_lora"), FILES, worker, place.execution, output)
        task.checkpoint.remove()
        unpack(output)
        bank = load_bank(output)
        save_statistics(bank_statistics([bank], len(real.class_names)), output)
        return loss_curves([bank])


def make_task(params: ClassLoraParams, real: ImageSetReader, key: list[object]) -> ClassLoraTask:
    """All images in the order of ids, so that no other order of the image set changes the result."""
    images = real.take(sorted(range(len(real)), key=lambda row: real.ids[row]))
    settings = params.model_dump(exclude={"method"})
    digest = digest_of([*key, settings, images.digests([]), real.class_names])
    return ClassLoraTask(images.images, images.labels, real.class_names, digest)


class ClassLoraWorker:
    """Task -> bytes of one file that holds both files of the result."""

    def __init__(self, open_model: OpenModel, params: ClassLoraParams):
        self.model, self.params = open_model(), params

    def compute(self, task: ClassLoraTask, advance: Callable[[int], None]) -> bytes:
        """Learn to the end."""
        images, labels = torch.from_numpy(task.images), torch.from_numpy(task.labels)
        classes = Classes.of(self.model, images, labels, task.class_names, self.params.batch_size)
        trainer = train(self.model, classes, self.params, task.checkpoint, advance)
        dtype, p = getattr(torch, self.params.storage_dtype), self.params
        bank, weights = bank_of(trainer).to(dtype), {n: w.to(dtype) for n, w in trainer.weights.items()}
        adapter = to_bytes(lambda path: save_adapter(weights, p.rank, p.alpha, path))
        return packed({BANK: to_bytes(lambda path: save_bank(bank, path)), FILE: adapter})


def bank_of(trainer: Trainer) -> EmbeddingBank:
    """The classes' embeddings; the training loss of a step, over images of any class, is that of all."""
    classes, (ends, means) = trainer.classes, interval_means(trainer.losses[:, None])
    return EmbeddingBank(
        trainer.c.detach().cpu(),
        classes.labels,
        classes.names,
        ends,
        means.expand(-1, len(classes.names)),
        torch.tensor(trainer.measured),
        trainer.heldout,
    )


def packed(files: Mapping[str, bytes]) -> bytes:
    """Several files as one, so that a part is finished with all of them or not at all."""
    tensors = {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()
    }
    return to_bytes(lambda path: save_file(tensors, path))


def unpack(output: Path) -> None:
    """Put the files of the one part in its place."""
    for name, content in load_file(output / BANK).items():
        with atomic_write(output / name) as temporary:
            temporary.write_bytes(content.numpy().tobytes())
