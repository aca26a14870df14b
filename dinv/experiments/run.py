"""Run one experiment: `dvc exp run` for every setting, one table, one figure.

Runs in copies of the project, so that the workspace stays as it is; what an earlier run has computed
is reused. Writes metrics/experiments/<name>.csv and .md and figures/<name>.png there after every setting.
"""

from collections.abc import Sequence
from pathlib import Path

import dvc.api
import pandas as pd

from dinv.classify.arms import baselines
from dinv.experiments.figures import figure
from dinv.experiments.headline import headline_table
from dinv.experiments.pipeline import run_pipeline
from dinv.experiments.results import efficiency_table, table, tidy
from dinv.experiments.spec import FOLDER, Experiment, Settings, changed, load_experiment
from dinv.files import atomic_write
from dinv.metrics.tables import write_csv, write_text
from dinv.params import Params, parse_params, read_yaml
from dinv.preset import PRESETS, preset_settings

OUTPUT = Path("metrics/experiments")
FIGURES = OUTPUT / "figures"  # a folder of its own, which dvc.yaml names as plots


def run_experiment(name: str, presets: Sequence[str] = ()) -> None:
    """Run the pipeline with every setting, in order; raises UserError when one fails.

    With presets, all runs have their settings too, and results are named PRESET-EXPERIMENT.
    """
    base = read_yaml(Path("params.yaml"))
    always = preset_settings(base, presets)
    base = changed(base, always, PRESETS)
    experiment = load_experiment(name, base)
    params = parse_params(changed(base, experiment.set, FOLDER / f"{name}.yaml"))
    name = "-".join([*presets, name])
    found: list[pd.DataFrame] = []
    runs = experiment.runs()
    for i, run in enumerate(runs, 1):
        revision = f"{name}-{run.label()}"
        print(f"\n{name}, run {i} of {len(runs)}: {run.settings}", flush=True)
        run_pipeline(revision, always | run.settings)
        found.append(read_results(revision, run.place, params))
        text = save(name, pd.concat(found, ignore_index=True), experiment, params)
    print(f"\n{experiment.question}\n\n{text}\nFigure: {FIGURES / name}.png")


def read_results(revision: str, place: Settings, params: Params) -> pd.DataFrame:
    """The rows of a finished run."""
    image_sets = [f"metrics/image_sets/{features}.csv" for features in params.measure.features]
    paths = ["metrics/accuracy.csv", "metrics/learned_loss.csv", *image_sets]
    accuracy, learned, *of_sets = (dvc.api.read(path, rev=revision) for path in paths)
    return tidy(place, accuracy, of_sets, learned)


def save(name: str, rows: pd.DataFrame, experiment: Experiment, params: Params) -> str:
    """Write table and figure of the runs that are finished; returns the table."""
    against = baselines(params.arms)
    text = table(rows, experiment, against)
    write_csv(OUTPUT / f"{name}.csv", rows)
    tables = (
        text,
        efficiency_table(rows, experiment, against),
        headline_table(rows, experiment, params.arms),
    )
    write_text(OUTPUT / f"{name}.md", "\n".join(filter(None, tables)))
    with atomic_write(FIGURES / f"{name}.png") as temporary:
        temporary.write_bytes(figure(rows, experiment, list(params.arms)))
    return text
