"""The search of one arm: Optuna's trials in a file, so that a killed search goes on where it was.

What trial n tries follows from the seed, from n and from the trials before it, whatever was interrupted.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from dinv.experiments.spec import Settings
from dinv.rng import derive_seed
from dinv.tuning.spec import Space, distributions

NUM_RANDOM = 8  # trials before the sampler learns from them
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
Scores = Callable[[Settings], Iterator[float]]
optuna.logging.set_verbosity(logging.WARNING)


@dataclass(frozen=True)
class Search:
    """One arm's search.

    Attributes:
        name: of arm and digest of all that decides the scores.
        space: what is tried.
        first: settings of the first trial, None: random ones.
        num_trials: how many.
        num_scores: folds of a trial.
        seed: of the sampler.
    """

    name: str
    space: Space
    first: Settings | None
    num_trials: int
    num_scores: int
    seed: int

    def open(self, storage: optuna.storages.BaseStorage) -> optuna.Study:
        """The study so far; a trial that was interrupted does not count."""
        study = optuna.create_study(
            storage=storage, study_name=self.name, direction="maximize", load_if_exists=True
        )
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        return study

    def run(self, study: optuna.Study, scores: Scores, advance: Callable[[int], None]) -> list[FrozenTrial]:
        """Finish all trials; `advance(n)` is called as n folds are done or spared."""
        advance(len(done(study)) * self.num_scores)
        for number in range(len(done(study)), self.num_trials):
            if number == 0 and self.first is not None:
                _first(study, self.space, self.first, scores, advance)
            else:
                self._one(study, number, scores, advance)
        return done(study)[: self.num_trials]

    def _one(self, study: optuna.Study, number: int, scores: Scores, advance: Callable[[int], None]) -> None:
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=NUM_RANDOM, seed=derive_seed(self.seed, self.name, number) % 2**32
        )
        trial = study.ask(distributions(self.space))
        found: list[float] = []
        for score in scores(trial.params):
            found.append(score)
            advance(1)
            trial.report(_mean(found), len(found) - 1)
            if len(found) < self.num_scores and trial.should_prune():
                advance(self.num_scores - len(found))
                study.tell(trial, state=TrialState.PRUNED)
                return
        study.tell(trial, _mean(found))


def _first(
    study: optuna.Study, space: Space, settings: Settings, scores: Scores, advance: Callable[[int], None]
) -> None:
    """The settings at hand, all folds of them: there is nothing to compare them with."""
    found = []
    for score in scores(settings):
        found.append(score)
        advance(1)
    means = {i: _mean(found[: i + 1]) for i in range(len(found))}
    trial = optuna.trial.create_trial(
        params=settings,
        distributions=distributions(space),
        value=_mean(found),
        intermediate_values=means,
    )
    study.add_trial(trial)


def done(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, in order."""
    return study.get_trials(states=DONE)


def best(trials: list[FrozenTrial]) -> FrozenTrial:
    """The complete trial with the highest score, the earliest if there are several."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(complete, key=lambda trial: (trial.value, -trial.number))


class _NoLock(JournalFileOpenLock):
    """The file is used by who holds the lock of its search; Optuna's own would outlive a killed process."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_storage(path: Path) -> optuna.storages.BaseStorage:
    """A file of trials, made if need be; a line that was being written when its process died is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_NoLock(str(path))))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
