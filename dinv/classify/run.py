"""From an arm to its trained classifiers: what is the same for every learner."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dinv.classify.arms import REAL, Arm
from dinv.classify.base import Advance, Classifier, LearnerParams, MixedParams, TrainingSet
from dinv.classify.choice import Choice, best_share, report
from dinv.classify.generated import labelled, prepared
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier, load_classifiers, save_classifier
from dinv.classify.teacher import find_teachers
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import FILES, PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.files import bytes_digest, digest_of, write_json
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
        """One classifier per seed, a part each, into a folder, and real_fraction.json where it is chosen."""
        params = self.params if isinstance(self.params, MixedParams) else None
        if params is not None and params.choose_real != "none" and arm.real:
            self._choose_and_train(name, arm, params, output)
            return
        only_real = arm.only_real or (arm.real and params is not None and params.only_real)
        sources = [self.real] if only_real or arm.real else []
        if not only_real:
            sources.append(self._prepared(ImageSetReader(Path(arm.images)), arm))
        self._run(name, sources, output)

    def _run(self, name: str, sources: Sequence[MappedImageSet], output: Path) -> None:
        learner = LEARNERS[self.params.learner]
        settings = learner.settings(self.params, len(sources) > 1, self.device)
        content = [self._content(source) for source in (self.real, *sources)]
        key = [self.code, self.params.learner, settings, content]
        plan = seed_plan(f"{name}, classifier", self.params.seeds, key, learner.num_units(self.params))
        worker = partial(TrainWorker, self, sources)
        run_parts(plan, PartStore("train"), FILES, worker, self._here, output)

    def _content(self, images: MappedImageSet) -> str:
        """Digest of what the learner reads of an image set."""
        digest = content_digest(images)
        return digest_of([digest, images.class_names]) if self.params.reads_class_names else digest

    @property
    def _here(self) -> ExecutionParams:
        """On this machine, whatever else runs elsewhere."""
        return self.execution.model_copy(update={"backend": "local", "num_workers": 1, "address": None})

    def _choose_and_train(self, name: str, arm: Arm, params: MixedParams, output: Path) -> None:
        """Choose the share of real images, train with it, and write down what the choice rests on."""
        made = ImageSetReader(Path(arm.images)).mapped()
        links = {column: ids for column, ids in made.provenance.items() if column.endswith("_id")}
        content = [self._content(self.real), self._content(made), digest_of(links)]
        scores = Choice(params, arm, self.device, self.code, content).scores(name, self._here)
        share = best_share(scores, params.choose_real_standard_errors)
        print(report(scores, share))
        chosen = {"real_fraction": share, "choose_real": "none"}
        replace(self, params=params.model_copy(update=chosen)).train(name, arm, output)
        write_json(output / "real_fraction.json", {"chosen": share, "accuracy": scores})

    def _prepared(self, reader: ImageSetReader, arm: Arm) -> MappedImageSet:
        """Generated images, filtered and labelled by classifiers if asked for."""
        return prepared(reader, range(len(reader)), self.params, partial(self._teachers, arm), self.device)

    def _teachers(self, arm: Arm) -> Sequence[Classifier]:
        """Of the real images; in later rounds the arm's classifiers of the round before."""
        if self.params.teacher_rounds > 1:
            with TemporaryDirectory() as folder:
                output = Path(folder) / "classifiers"
                replace(self, params=self.params.one_round_less).train("teacher", arm, output)
                return load_classifiers(output)
        real = labelled(self.real, None, self.device)
        return find_teachers(self.params, real, self._own_classifiers, self.device)

    def _own_classifiers(self) -> list[StoredClassifier]:
        """The same learner's of the real images, which another arm may have trained already."""
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
        self.data = TrainingSet(learned, real, trainer.real.class_names)

    def compute(self, seed: int, advance: Advance) -> bytes:
        """Train one classifier."""
        learner, name = LEARNERS[self.params.learner], self.params.learner
        fitted = learner.fit(self.data, self.params, seed, self.device, advance)
        stored = StoredClassifier(name, fitted, seed, sum(len(s) for s in self.data.sources))
        return to_bytes(lambda path: save_classifier(stored, path))


def content_digest(images: MappedImageSet) -> str:
    """Of pixels, labels, class probabilities, sources and partners."""
    soft = b"" if images.probabilities is None else images.probabilities.tobytes()
    named = [images.provenance.get(column) for column in ("source_id", "partner_id")]
    pixels = (images.pixels[rows].tobytes() for rows in batches(len(images), 1000))
    return bytes_digest(images.labels.tobytes(), soft, json.dumps(named).encode(), *pixels)
