"""The share of real images of a mixed arm, 1 among the choices, chosen by the labelled images alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import sem

from dinv.classify.arms import REAL, Arm
from dinv.classify.base import NOT_OF_TRAINING, Advance, MixedParams
from dinv.classify.folds import Fold, Scorer, cross_validation
from dinv.classify.registry import LEARNERS
from dinv.classify.teacher import teacher_key
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import FILES, PartStore, Plan
from dinv.execution.run import run_parts
from dinv.files import digest_of
from dinv.images.reader import ImageSetReader

Scores = dict[float, list[float]]


@dataclass(frozen=True)
class Choice:
    """Chooses `real_fraction` by stratified cross-validation inside the real training images.

    Of every fold's training the images generated from held-out ones are left out, and so is what a teacher or
    a filter would learn from them. The folds are the same for every share and arm.

    Attributes:
        params: the learner's; `choose_real_from` and `choose_real_folds` are read.
        code: digest of the code that decides the result.
        content: digests of the real and of the generated images, and of what the latter were made from.
    """

    params: MixedParams
    arm: Arm
    device: torch.device
    code: str
    content: Sequence[str]

    def scores(self, name: str, execution: ExecutionParams) -> Scores:
        """Share of real images -> accuracy in percent of every fold; a training each, kept as a part.

        Raises:
            UserError: a class has one image only, or generated images do not name their real images.
        """
        folds = cross_validation(ImageSetReader(Path(REAL)), self.params.choose_real_folds, 1, seed=0)
        tasks = [(share, fold) for share in self.params.choose_real_from for fold in folds]
        keys = {share: self._key(share) for share in self.params.choose_real_from}

        def digests(rows: Sequence[int]) -> list[str]:
            return [digest_of([keys[tasks[row][0]], _of_fold(tasks[row][1])]) for row in rows]

        def task(rows: Sequence[int]) -> tuple[float, Fold]:
            return tasks[rows[0]]

        plan = Plan(f"{name}, share of real images", len(tasks), 1, digests, task, "fold")
        with TemporaryDirectory() as folder:
            output, codec = Path(folder) / "scores", replace(FILES, suffix=".json")
            run_parts(plan, PartStore("train"), codec, lambda: self, execution, output)
            values = [json.loads(path.read_text()) for path in sorted(output.iterdir())]
        return {
            share: [v for v, (s, _) in zip(values, tasks, strict=True) if s == share]
            for share in self.params.choose_real_from
        }

    def compute(self, task: tuple[float, Fold], advance: Advance) -> bytes:
        """The accuracy of one share on one fold, as JSON."""
        share, fold = task
        (score,) = Scorer(Path(), self._arm(share), self._with(share), self.device).scores([fold])
        advance(1)
        return json.dumps(score).encode()

    def _with(self, share: float) -> MixedParams:
        return self.params.model_copy(update={"real_fraction": share, "choose_real": "none"})

    def _arm(self, share: float) -> Arm:
        """With a share of 1 that of real images only: neither filter nor teacher is needed."""
        return Arm(images=REAL, real=False, learner=self.arm.learner) if share == 1 else self.arm

    def _key(self, share: float) -> list[object]:
        """All that decides the scores of a share, but for the fold."""
        params, mixes = self._with(share), share < 1
        settings = LEARNERS[params.learner].settings(params, mixes, self.device)
        of_images = params.model_dump(include=set(NOT_OF_TRAINING - {"seeds", "teacher", *_OF_CHOICE}))
        key = [self.code, "fold", params.learner, settings, self.content[0]]
        return [*key, *self.content[1:], of_images, teacher_key(params.teacher)] if mixes else key


_OF_CHOICE = {"choose_real", "choose_real_from", "choose_real_folds", "choose_real_standard_errors"}


def _of_fold(fold: Fold) -> list[object]:
    return [fold.train.tolist(), sorted(fold.held_out), fold.seed]


def best_share(scores: Scores, standard_errors: float) -> float:
    """The largest share that the best one does not surpass by so many standard errors.

    The best has the highest mean accuracy over folds. The standard error is that of the mean difference,
    paired by fold. With 0 it is the best itself; of equal ones always the largest share.
    """
    best = max(scores.values(), key=lambda values: round(float(np.mean(values)), 9))
    ahead = {share: np.subtract(best, values) for share, values in scores.items()}
    return max(s for s, d in ahead.items() if d.mean() <= standard_errors * sem(d) + 1e-9)


def report(scores: Scores, chosen: float) -> str:
    """One line: every share with its mean accuracy, and which was chosen."""
    means = ", ".join(f"{share:g}: {np.mean(values):.2f}" for share, values in scores.items())
    return f"real_fraction by cross-validation: {means}; {chosen:g} is chosen"
