"""`dinv calibrate`: how often a pilot's interval covers an answer that is known.

Every pilot has other labelled images of the same task: data.seed counts up. Writes
metrics/pilot/<name>-calibration.csv; finished pilots are kept, so that an interrupted run goes on.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dinv.errors import UserError
from dinv.metrics.tables import write_csv
from dinv.params import Params, load_params
from dinv.pilot.report import Found
from dinv.pilot.run import OUTPUT, pilot

Run = Callable[[str, Params, float], Found]


def run_calibration(name: str, num_pilots: int, truth: float, minutes: float) -> None:
    """Run the pilots, write and print; raises UserError.

    Args:
        name: of the file that is written.
        num_pilots: how many.
        truth: points that generated images add to the best alternative, as full runs on a large test set say
            for as many labelled images of each class as a pilot learns from.
        minutes: of each pilot.
    """
    if num_pilots < 1:
        raise UserError(f"--pilots {num_pilots}: must be at least 1")
    rows = calibration(name, load_params(), num_pilots, truth, minutes, pilot)
    path = OUTPUT / f"{name}-calibration.csv"
    write_csv(path, rows)
    print(sentence(rows, truth, path))


def calibration(
    name: str, params: Params, num_pilots: int, truth: float, minutes: float, run: Run
) -> pd.DataFrame:
    """A row per pilot: seed, k, mean, low and high of the difference, verdict, covered or not."""
    rows = []
    for seed in tqdm(range(params.data.seed, params.data.seed + num_pilots), unit="pilot"):
        own = params.model_copy(update={"data": params.data.model_copy(update={"seed": seed})})
        found = run(name, own, minutes)
        d = found.top.difference
        numbers = {key: round(value, 4) for key, value in vars(d).items()}
        covered = d.low <= truth <= d.high
        rows.append({"seed": seed, "k": found.top.k, **numbers, "verdict": found.verdict, "covered": covered})
    return pd.DataFrame(rows)


def sentence(rows: pd.DataFrame, truth: float, path: Path) -> str:
    """How often the truth was covered, and what the verdicts were."""
    verdicts = ", ".join(f"{word} {n}" for word, n in rows["verdict"].value_counts().items())
    covered, width = int(rows["covered"].sum()), float((rows["high"] - rows["low"]).mean())
    return (
        f"{covered} of {len(rows)} intervals cover {truth:+.1f} points; they are {width:.1f} points wide on "
        f"average; verdicts: {verdicts}; {path}"
    )
