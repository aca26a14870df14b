"""Tune arms with equal effort: as many trials for each, then the best of each as an experiment of DVC.

Writes metrics/tuning/<name>.csv and .md. Trials are kept in .scratch/tune: after an interruption the same
command goes on where it was.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import dvc.api
import torch
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from tqdm import tqdm

from dinv.classify.arms import REAL
from dinv.classify.base import NOT_OF_TRAINING
from dinv.classify.folds import Fold, Scorer, cross_validation, images_per_class
from dinv.classify.registry import LEARNERS
from dinv.errors import UserError
from dinv.execution.code import code_digest
from dinv.execution.device import resolve_device
from dinv.execution.lock import exclusive
from dinv.execution.parts import scratch_root
from dinv.experiments.pipeline import run_pipeline
from dinv.experiments.spec import Settings, changed
from dinv.files import digest_of, file_digest
from dinv.images.image_set import ImageSetReader
from dinv.metrics.tables import write_csv, write_text
from dinv.params import Params, parse_params, read_yaml
from dinv.tuning import folds
from dinv.tuning.report import Results, table, tidy
from dinv.tuning.spec import FOLDER, Tuning, at, effective_blocks, load_tuning, present
from dinv.tuning.study import Search, best, open_storage
from dinv.tuning.workshop import Data

OUTPUT = Path("metrics/tuning")


def run_tuning(name: str) -> None:
    """Search for every arm, run the pipeline with the best of each; raises UserError when a part fails."""
    started = time.monotonic()
    project = read_yaml(Path("params.yaml"))
    tuning = load_tuning(name, project)
    require_finished(parse_params(project), tuning)
    tuner = Tuner(name, tuning, project, Path())
    results = tuner.search()
    save(name, results)
    for arm, trials in results.trials.items():
        revision = f"tune-{name}-{arm}"
        print(f"\n{arm}, the best of {len(trials)} trials: {best(trials).params}", flush=True)
        run_pipeline(revision, {**tuning.set, **best(trials).params})
        results.accuracy[arm] = dvc.api.read("metrics/accuracy.csv", rev=revision)
        text = save(name, results)
    print(f"\n{tuning.question}\n\n{text}\n{time.monotonic() - started:.0f} s in all")


def save(name: str, results: Results) -> str:
    """Write what is known by now; returns the table."""
    write_csv(OUTPUT / f"{name}.csv", tidy(results))
    text = table(results)
    write_text(OUTPUT / f"{name}.md", text)
    return text


def require_finished(params: Params, tuning: Tuning) -> None:
    """Raise UserError unless the data that trials begin with are those of params.yaml."""
    made = {
        params.arms[arm].images.rpartition("/")[2] for arm in tuning.arms if not params.arms[arm].only_real
    }
    stages = ["download", *(f"generate@{block}" for block in sorted(made))]
    command = [sys.executable, "-m", "dvc", "status", "--quiet", *stages]
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError("the data are not those of params.yaml; run dvc repro first")


@dataclass(frozen=True)
class Tuner:
    """The searches of one file in the project at `root`, whose params.yaml says `project`."""

    name: str
    tuning: Tuning
    project: Mapping[str, Any]
    root: Path

    @cached_property
    def sections(self) -> dict[str, Any]:
        """Those of params.yaml with what the file sets."""
        return changed(dict(self.project), self.tuning.set, self.path)

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return FOLDER / f"{self.name}.yaml"

    @cached_property
    def params(self) -> Params:
        """The sections, typed."""
        return parse_params(self.sections, str(self.path))

    @cached_property
    def device(self) -> torch.device:
        """Where classifiers are trained."""
        return resolve_device(self.params.execution.device)

    def search(self) -> Results:
        """All trials of all arms, with a bar over all folds."""
        scratch = (self.root / scratch_root()).resolve()
        file = scratch / "tune" / f"{self.name}.journal"
        arms = [self.params.arms[arm] for arm in self.tuning.arms]
        data = Data(self.root, self.project, self.root.resolve(), scratch)
        with exclusive(file.with_suffix(".lock"), "another run tunes the same; waiting for it"):
            storage = open_storage(file)
            with data.changed(self.sections, arms) as base:
                measured = self.measured(base.folder)
                with tqdm(total=measured.num_scores * self.tuning.trials * len(arms), unit="fold") as bar:
                    trials = {arm: self._run(arm, base, storage, measured, bar) for arm in self.tuning.arms}
        without = [arm for arm in trials if self.params.arms[arm].only_real]
        return Results(self.tuning, measured.title, trials, without, {})

    def measured(self, folder: Path) -> "Measured":
        """How trials are scored with the real images of a folder."""
        t = self.tuning
        kind = t.score
        if kind == "auto":
            kind = "validation" if folds.has_small_validation(folder) else "cross_validation"
        size = images_per_class(ImageSetReader(folder / REAL))
        if kind == "cross_validation":
            held = min(t.folds, size)
            return Measured(
                kind, held * t.repeats, f"cross-validation in {held} folds of the {size} per class"
            )
        shown = ImageSetReader(folder / folds.VALIDATION)
        if not len(shown):
            raise UserError(f"{self.path}: score: validation, but there are no validation images")
        each = images_per_class(shown)
        more = f", more than the {size} to learn from" if each > size else ""
        return Measured(kind, t.repeats, f"{each} validation images per class{more}")

    def of(self, arm: str, folder: Path, num_scores: int) -> Search:
        """The search of one arm; its name covers all that decides its scores."""
        t, chosen = self.tuning, self.params.arms[arm]
        params = self.params.train[chosen.learner]
        settings = LEARNERS[params.learner].settings(params, chosen.real, self.device)
        blocks = {name: at(self.sections, name) for name in effective_blocks(self.params, arm)[1:]}
        key = [
            code_digest(LEARNERS.module(params.learner), "dinv.classify.folds", "dinv.tuning.folds"),
            [
                settings,
                params.model_dump(include=set(NOT_OF_TRAINING - {"seeds"})),
                chosen.model_dump(),
                blocks,
            ],
            [self.sections["data"], self.sections["model"], _content(folder, chosen.images)],
            t.model_dump(include={"score", "folds", "repeats", "seed"}),
            {name: str(values) for name, values in t.arms[arm].items()},
        ]
        first = present(t.arms[arm], self.sections)
        return Search(f"{arm}-{digest_of(key)[:16]}", t.arms[arm], first, t.trials, num_scores, t.seed)

    def _run(
        self, arm: str, base: Data, storage: BaseStorage, measured: "Measured", bar: Any
    ) -> list[FrozenTrial]:
        bar.set_description(arm)

        def advance(n: int) -> None:
            bar.update(n)

        search = self.of(arm, base.folder, measured.num_scores)
        return search.run(search.open(storage), partial(self.scores, arm, base, measured), advance)

    def scores(self, arm: str, base: Data, measured: "Measured", settings: Settings) -> Iterator[float]:
        """Accuracies of an arm with some parameters changed, fold by fold."""
        sections = changed(self.sections, settings, self.path)
        params = parse_params(sections, f"{self.path}: {settings}")
        chosen = params.arms[arm]
        with base.changed(sections, [chosen]) as data:
            scorer = Scorer(data.folder, chosen, params.train[chosen.learner], self.device)
            yield from scorer.scores(self.folds(measured, data.folder))

    def folds(self, measured: "Measured", folder: Path) -> list[Fold]:
        """The same for every arm and trial."""
        t, real = self.tuning, ImageSetReader(folder / REAL)
        if measured.kind == "cross_validation":
            return cross_validation(real, t.folds, t.repeats, t.seed)
        return folds.validation(real, ImageSetReader(folder / folds.VALIDATION), t.repeats, t.seed)


@dataclass(frozen=True)
class Measured:
    """Which score, of how many trainings it is the mean, and its title in the table."""

    kind: str
    num_scores: int
    title: str


def _content(folder: Path, images: str) -> dict[str, str]:
    """The image sets that an arm begins with, by their bytes."""
    sets = (REAL, folds.VALIDATION, images)
    files = sorted({file for name in sets for file in (folder / name).glob("*.parquet")})
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
