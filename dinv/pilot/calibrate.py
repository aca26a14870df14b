"""`dinv calibrate`: how often a pilot's interval covers an answer that is known.

Every pilot has other labelled images of the same task: data.seed counts up. All keep to the plan of the
first. Writes metrics/pilot/<name>-calibration.csv, and <name>-runs.csv if full runs say what the answer is;
finished pilots and runs are kept, so that an interrupted calibration goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dinv.errors import UserError
from dinv.metrics.tables import write_csv
from dinv.params import Params, load_params
from dinv.pilot.plan import Plan
from dinv.pilot.report import Found
from dinv.pilot.run import OUTPUT, pilot
from dinv.pilot.settings import competition
from dinv.pilot.truth import full_runs, truth_of

Run = Callable[[Params, Plan | None], Found]


def run_calibration(
    name: str, num_pilots: int, truth: float | None, num_runs: int, minutes: float, learners: Sequence[str]
) -> None:
    """Run the pilots, write and print; raises UserError.

    Args:
        name: of the files that are written.
        num_pilots: how many.
        truth: points that generated images add to the best alternative, as full runs on a large test set say
            for as many labelled images of each class as a pilot learns from; None: they are run here.
        num_runs: how many full runs, if truth is None.
        minutes: of each pilot.
        learners: the only ones that compete; none: all.
    """
    for option, value in (("--pilots", num_pilots), ("--runs", num_runs)):
        if value < 1:
            raise UserError(f"{option} {value}: must be at least 1")
    params = load_params()
    found = competition(params).named(learners)

    def known(k: int) -> float:
        if truth is not None:
            return truth
        runs = full_runs(params, found, k, num_runs)
        write_csv(OUTPUT / f"{name}-runs.csv", runs)
        return truth_of(runs).mean

    run = partial(_pilot, name, minutes, learners)
    path = OUTPUT / f"{name}-calibration.csv"
    for rows in calibration(params, num_pilots, known, run):
        write_csv(path, rows)
    print(sentence(rows, path))


def _pilot(name: str, minutes: float, learners: Sequence[str], params: Params, plan: Plan | None) -> Found:
    return pilot(name, params, minutes, learners, plan)


def calibration(
    params: Params, num_pilots: int, truth: Callable[[int], float], run: Run
) -> Iterator[pd.DataFrame]:
    """A row per pilot: seed, k, mean, low and high of the difference, truth, verdict, covered or not.

    Yields the rows so far, after every pilot. `truth` is asked once, for the pilots' k.
    """
    rows, plan, known = [], None, 0.0
    for seed in tqdm(range(params.data.seed, params.data.seed + num_pilots), unit="pilot"):
        own = params.model_copy(update={"data": params.data.model_copy(update={"seed": seed})})
        found = run(own, plan)
        if plan is None:
            plan, known = found.plan, round(truth(found.top.k), 4)
        d = found.top.difference
        numbers = {key: round(value, 4) for key, value in vars(d).items()}
        answer = {"truth": known, "verdict": found.verdict, "covered": d.low <= known <= d.high}
        rows.append({"seed": seed, "k": found.top.k, **numbers, **answer})
        yield pd.DataFrame(rows)


def sentence(rows: pd.DataFrame, path: Path) -> str:
    """How often the truth was covered, and what the verdicts were."""
    verdicts = ", ".join(f"{word} {n}" for word, n in rows["verdict"].value_counts().items())
    covered, width = int(rows["covered"].sum()), float((rows["high"] - rows["low"]).mean())
    return (
        f"{covered} of {len(rows)} intervals cover {rows['truth'].iloc[0]:+.1f} points; they are {width:.1f} "
        f"points wide on average; verdicts: {verdicts}; {path}"
    )
