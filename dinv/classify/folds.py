"""How well classifiers do on labelled images that neither they nor their generated images come from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.arms import REAL, Arm
from dinv.classify.base import Classifier, LabelledImages, LearnerParams, TrainingSet
from dinv.classify.generated import labelled, prepared
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier
from dinv.classify.teacher import find_teachers
from dinv.errors import UserError
from dinv.images.image_set import ImageSetReader
from dinv.rng import derive_seed


@dataclass(frozen=True)
class Fold:
    """One training and what it is measured on.

    Attributes:
        train: rows of the real training images to learn from.
        scored: the set to be measured on, of which `rows`.
        seed: of the classifier.
        held_out: ids of training images that nothing may be learned from.
    """

    train: NDArray[np.int64]
    scored: ImageSetReader
    rows: NDArray[np.int64]
    seed: int
    held_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scorer:
    """Trains and measures an arm in the folder `root`, which has the data that the parameters make."""

    root: Path
    arm: Arm
    params: LearnerParams
    device: torch.device

    def scores(self, folds: Sequence[Fold]) -> Iterator[float]:
        """Accuracy of each fold, in percent, as it is known."""
        real = ImageSetReader(self.root / REAL)
        made = None if self.arm.only_real else ImageSetReader(self.root / self.arm.images)
        for fold in folds:
            classifier = self._trained(fold, real, made)
            shown = fold.scored.mapped(fold.rows.tolist())
            predicted = classifier.predict_proba(shown.tensor(), self.device).argmax(1)
            yield 100 * float((predicted == shown.labels).mean())

    def _trained(self, fold: Fold, real: ImageSetReader, made: ImageSetReader | None) -> StoredClassifier:
        kept = real.mapped(fold.train.tolist())
        own = labelled(kept, None, self.device)
        sources = [own] if made is None or self.arm.real else []
        if made is not None:
            rows = allowed_rows(made, fold.held_out).tolist()
            teachers = partial(self._teachers, fold, real, made, own)
            images = prepared(made, rows, self.params, teachers, self.device)
            row_of = {image_id: row for row, image_id in enumerate(kept.ids)}
            sources.append(labelled(images, row_of, self.device))
        return self._fit(TrainingSet(sources, own, real.class_names), fold.seed)

    def _fit(self, data: TrainingSet, seed: int) -> StoredClassifier:
        name = self.params.learner
        fitted = LEARNERS[name].fit(data, self.params, seed, self.device, lambda n: None)
        return StoredClassifier(name, fitted, seed, sum(len(source) for source in data.sources))

    def _teachers(
        self, fold: Fold, real: ImageSetReader, made: ImageSetReader, own: LabelledImages
    ) -> Sequence[Classifier]:
        """The teacher, a classifier like the arm's own, or both, of this fold's real images; in later rounds
        the fold's classifier of the round before.
        """
        if self.params.teacher_rounds > 1:
            return [replace(self, params=self.params.one_round_less)._trained(fold, real, made)]
        alone = TrainingSet([own], own, real.class_names)
        return find_teachers(self.params, own, lambda: [self._fit(alone, fold.seed)], self.device)


def allowed_rows(made: ImageSetReader, held_out: frozenset[str]) -> NDArray[np.int64]:
    """Generated images of which neither source nor partner is held out; all, if nothing is.

    Any column that ends in `_id` names an image.

    Raises:
        UserError: the images do not say which they were made from, or none is left.
    """
    if not held_out:
        return np.arange(len(made))
    columns = {name: values for name, values in made.provenance.items() if name.endswith("_id")}
    if any(source is None for source in columns.get("source_id", [None])):
        raise UserError(
            "cross_validation: generated images do not name the real image that they were made from, so "
            "none can be left out; set score to validation, or choose_real to none"
        )
    touched = [any(v in held_out for v in values) for values in zip(*columns.values(), strict=True)]
    rows = np.flatnonzero(~np.array(touched))
    if not len(rows):
        raise UserError(
            "cross_validation: leaves no generated image to learn from: each has a held-out source or "
            "partner; use more folds or more images"
        )
    return rows


def cross_validation(real: ImageSetReader, num_folds: int, repeats: int, seed: int) -> list[Fold]:
    """Stratified folds, divided anew in every repeat.

    Raises:
        UserError: a class has one image only.
    """
    from sklearn.model_selection import StratifiedKFold  # noqa: PLC0415 - seconds

    fewest = images_per_class(real)
    if fewest < 2:
        raise UserError(
            "cross_validation: needs two labelled images of each class; set score to validation, or "
            "choose_real to none"
        )
    found: list[Fold] = []
    for repeat in range(repeats):
        state = derive_seed(seed, "folds", repeat) % 2**32
        splitter = StratifiedKFold(min(num_folds, fewest), shuffle=True, random_state=state)
        for train, held_out in splitter.split(np.zeros(len(real)), real.labels):
            own = derive_seed(seed, "classifier", len(found)) % 2**32
            ids = frozenset(real.ids[row] for row in held_out.tolist())
            found.append(Fold(train, real, held_out, own, ids))
    return found


def images_per_class(images: ImageSetReader) -> int:
    """Of the class with the fewest."""
    return int(np.bincount(images.labels, minlength=len(images.class_names)).min())
