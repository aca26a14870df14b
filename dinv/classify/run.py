"""From an arm to its trained classifiers: what is the same for every learner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.arms import REAL, Arm
from dinv.classify.base import Advance, LabelledImages, LearnerParams, TrainingSet
from dinv.classify.confidence import confident_rows, label_confidence
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier, load_classifiers, save_classifier
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import FILES, PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.files import bytes_digest, digest_of
from dinv.images.image_set import batches
from dinv.images.mapped import MappedImageSet
from dinv.images.reader import ImageSetReader


@dataclass(frozen=True)
class Trainer:
    """Trains arms with one block of `train`.

    Attributes:
        params: the block.
        execution: progress and locks; the images stay on this machine.
        device: where to train.
        code: digest of the learner's code.
    """

    params: LearnerParams
    execution: ExecutionParams
    device: torch.device
    code: str

    @cached_property
    def real(self) -> MappedImageSet:
        """The real training images."""
        return ImageSetReader(Path(REAL)).mapped()

    def train(self, name: str, arm: Arm, output: Path) -> None:
        """One classifier per seed, a part each, into a folder."""
        sources = [self.real] if arm.only_real or arm.real else []
        if not arm.only_real:
            sources.append(self._kept(ImageSetReader(Path(arm.images))))
        self._run(name, sources, output)

    def _run(self, name: str, sources: Sequence[MappedImageSet], output: Path) -> None:
        learner = LEARNERS[self.params.learner]
        settings = learner.settings(self.params, len(sources) > 1, self.device)
        content = [content_digest(source) for source in (self.real, *sources)]
        key = [self.code, self.params.learner, settings, content]
        plan = seed_plan(f"{name}, classifier", self.params.seeds, key, learner.num_units(self.params))
        worker = partial(TrainWorker, self, sources)
        here = self.execution.model_copy(update={"backend": "local", "num_workers": 1, "address": None})
        run_parts(plan, PartStore("train"), FILES, worker, here, output)

    def _kept(self, reader: ImageSetReader) -> MappedImageSet:
        """Generated images, less those that classifiers of the real ones doubt."""
        images, least = reader.mapped(), self.params.min_confidence
        if least == 0:
            return images
        confidence = label_confidence(self._teachers(), images.tensor(), images.labels, self.device)
        kept = confident_rows(confidence, images.labels, images.class_names, least)
        print(f"{len(kept)} of {len(images)} generated images have confidence {least} or more")
        return reader.mapped(kept.tolist())

    def _teachers(self) -> list[StoredClassifier]:
        """The same learner's classifiers of the real images, which another arm may have trained already."""
        with TemporaryDirectory() as folder:
            self._run("teacher", [self.real], Path(folder) / "classifiers")
            return load_classifiers(Path(folder) / "classifiers")


def seed_plan(name: str, seeds: Sequence[int], key: Sequence[object], num_units: int) -> Plan:
    """One part per seed; its task is the seed."""

    def digests(rows: Sequence[int]) -> list[str]:
        return [digest_of([*key, seeds[row]]) for row in rows]

    return Plan(name, len(seeds), 1, digests, lambda rows: seeds[rows[0]], "image", num_units)


class TrainWorker:
    """Seed -> bytes of a classifier file."""

    def __init__(self, trainer: Trainer, sources: Sequence[MappedImageSet]):
        self.params, self.device = trainer.params, trainer.device
        row_of = {image_id: row for row, image_id in enumerate(trainer.real.ids)}
        real = labelled(trainer.real, None, self.device)
        learned = [real if s is trainer.real else labelled(s, row_of, self.device) for s in sources]
        self.data = TrainingSet(learned, real)

    def compute(self, seed: int, advance: Advance) -> bytes:
        """Train one classifier."""
        learner, name = LEARNERS[self.params.learner], self.params.learner
        fitted = learner.fit(self.data, self.params, seed, self.device, advance)
        stored = StoredClassifier(name, fitted, seed, sum(len(s) for s in self.data.sources))
        return to_bytes(lambda path: save_classifier(stored, path))


def content_digest(images: MappedImageSet) -> str:
    """Of pixels, labels, class probabilities and sources."""
    soft = b"" if images.probabilities is None else images.probabilities.tobytes()
    sources = json.dumps(images.provenance.get("source_id")).encode()
    pixels = (images.pixels[rows].tobytes() for rows in batches(len(images), 1000))
    return bytes_digest(images.labels.tobytes(), soft, sources, *pixels)


def labelled(
    images: MappedImageSet, row_of: Mapping[str, int] | None, device: torch.device
) -> LabelledImages:
    """An image set as a learner sees it; `row_of` tells rows of real images, None: these are real."""
    targets = torch.from_numpy(class_probabilities(images))
    origins = None
    if row_of is not None:
        sources = images.provenance.get("source_id", [None] * len(images))
        origins = torch.tensor([row_of.get(i, -1) if i is not None else -1 for i in sources])
    return LabelledImages(placed(images.tensor(), device), targets, origins)


def class_probabilities(images: MappedImageSet) -> NDArray[np.float32]:
    """float32 [N, M]: as stored, or 1 for the label."""
    if images.probabilities is not None:
        return images.probabilities
    return np.eye(len(images.class_names), dtype=np.float32)[images.labels]


def placed(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on a GPU if a quarter of its free memory holds them, else where they are."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return images.to(device)
