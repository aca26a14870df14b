"""What full runs say: the answer that pilots are held against.

A full run has the settings of params.yaml, other labelled images than any pilot, and is scored on the test
split. Accuracies are kept in .scratch/pilot/runs, so that an interrupted calibration goes on.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from dinv.execution.code import code_digest
from dinv.execution.parts import scratch_root
from dinv.files import digest_of, write_json
from dinv.params import LEARNED, Params
from dinv.pilot.design import Design
from dinv.pilot.plan import scaled_learner, whole_plan
from dinv.pilot.settings import Competition
from dinv.pilot.work import SIDES, Work
from dinv.sources.task import load_task

FIRST_SEED = 1000  # above data.seed: the first choice of labelled images, of which no pilot knows


@dataclass(frozen=True)
class Truth:
    """Points that generated images add to the best alternative, as n full runs say.

    Attributes:
        mean, stderr: of the paired differences, in points.
        n: runs.
        best: learner that is best on average, by side.
    """

    mean: float
    stderr: float
    n: int
    best: dict[str, str]


def full_runs(params: Params, found: Competition, k: int, n: int) -> pd.DataFrame:
    """A row per run: seed, k, and the test accuracy in percent of "without NAME" and "with NAME"."""
    seeds = range(params.data.seed + FIRST_SEED, params.data.seed + FIRST_SEED + n)
    rows = [{"seed": s, "k": k, **accuracies(params, found, k, s)} for s in tqdm(seeds, unit="full run")]
    return pd.DataFrame(rows)


def accuracies(params: Params, found: Competition, k: int, seed: int) -> dict[str, float]:
    """Of every learner on both sides, with k labelled images of each class chosen by `seed`."""
    data = params.data.model_copy(update={"seed": seed, "num_per_class": k})
    own = params.model_copy(update={"data": data})
    folder = scratch_root() / "pilot" / "runs" / _digest(own, found)
    path = folder / "accuracies.json"
    if not path.is_file():
        write_json(path, _measured(own, found, k, folder))
    kept: dict[str, float] = json.loads(path.read_text())
    return {column: kept[column] for column in _columns(found)}


def _digest(params: Params, found: Competition) -> str:
    generate = params.generate[found.generate]
    learned = params.invert.get(generate.input.removeprefix(LEARNED))
    blocks = [params.data, params.model, generate, *([learned] if learned else []), *found.learners.values()]
    names = list(found.learners)
    return digest_of([code_digest("dinv.pilot.work"), names, [b.model_dump() for b in blocks]])[:16]


def _measured(params: Params, found: Competition, k: int, folder: Path) -> dict[str, float]:
    task = load_task(params.data)
    sides = [params.data.resolution, params.model.resolution]
    small, large = task.train.take_at(sides, range(len(task.train)))
    plan = whole_plan(params, found, k, len(small.class_names))
    design = Design(small.labels, small.ids, 1, params.data.seed)
    work, test = Work(params, found, plan, design, small, large, folder), task.test.load()
    (everything,) = design.blocks()

    def accuracy(side: str, name: str) -> float:
        learner = scaled_learner(found.learners[name], plan)
        answers = work.answers(side, name, learner, everything, test)
        return round(100 * float((answers == test.labels).mean()), 4)

    return {column: accuracy(*column.split(" ")) for column in _columns(found)}


def _columns(found: Competition) -> list[str]:
    return [f"{side} {name}" for side in SIDES for name in found.learners]


def truth_of(runs: pd.DataFrame) -> Truth:
    """The best learner of each side, by its mean over all runs, and the difference between the two."""
    best = {side: max(_of(runs, side), key=lambda column: float(runs[column].mean())) for side in SIDES}
    d = (runs[best["with"]] - runs[best["without"]]).to_numpy(np.float64)
    stderr = float(d.std(ddof=1) / np.sqrt(len(d))) if len(d) > 1 else float("nan")
    return Truth(float(d.mean()), stderr, len(d), {s: c.removeprefix(f"{s} ") for s, c in best.items()})


def _of(runs: pd.DataFrame, side: str) -> Sequence[str]:
    return [str(column) for column in runs.columns if str(column).startswith(f"{side} ")]
