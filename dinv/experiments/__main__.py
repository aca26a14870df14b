"""Run one of the paper's experiments: `dvc exp run` for every setting, one table, one figure.

    python -m dinv.experiments learning_curve

Runs in copies of the project, so that the workspace stays as it is; what an earlier run has computed
is reused. Writes metrics/experiments/<name>.csv and .md and figures/<name>.png there after every setting.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import dvc.api

from dinv.errors import UserError
from dinv.experiments.results import ACCURACY, IMAGE_SETS, Row, efficiency_table, figure, table, tidy
from dinv.experiments.spec import Experiment, Settings, load_experiment
from dinv.files import atomic_write
from dinv.metrics.tables import write_csv
from dinv.params import read_yaml

OUTPUT = Path("metrics/experiments")
FIGURES = OUTPUT / "figures"  # a folder of its own, which dvc.yaml names as plots


def run_experiment(name: str) -> None:
    """Run the pipeline with every setting, in order; raises UserError when one fails."""
    experiment = load_experiment(name, read_yaml(Path("params.yaml")))
    rows: list[Row] = []
    runs = experiment.runs()
    for i, run in enumerate(runs, 1):
        revision = f"{name}-{run.label()}"
        print(f"\n{name}, run {i} of {len(runs)}: {run.settings}", flush=True)
        run_pipeline(revision, run.settings)
        accuracy, image_sets = (dvc.api.read(path, rev=revision) for path in (ACCURACY, IMAGE_SETS))
        rows += tidy(run.place, accuracy, image_sets)
        save(name, rows, experiment)
    print(f"\n{experiment.question}\n\n{table(rows, experiment)}\nFigure: {FIGURES / name}.png")


def run_pipeline(revision: str, settings: Settings) -> None:
    """One `dvc exp run` in a copy of the project, kept under the name `revision`."""
    changes = [part for name, value in settings.items() for part in ("-S", f"{name}={_literal(value)}")]
    command = ["exp", "run", "--temp", "--force", "--name", revision, *changes]
    done = subprocess.run([sys.executable, "-m", "dvc", *command], check=False)
    if done.returncode != 0:
        raise UserError(f"{revision}: dvc exp run failed, see above; run again, finished parts are reused")


def _literal(value: object) -> str:
    """A value as `dvc exp run -S` reads it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def save(name: str, rows: list[Row], experiment: Experiment) -> None:
    """Write table and figure of the runs that are finished."""
    write_csv(OUTPUT / f"{name}.csv", rows)
    text = "\n".join(filter(None, (table(rows, experiment), efficiency_table(rows, experiment))))
    with atomic_write(OUTPUT / f"{name}.md") as temporary:
        temporary.write_text(text)
    with atomic_write(FIGURES / f"{name}.png") as temporary:
        temporary.write_bytes(figure(rows, experiment))


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="file of experiments/ without .yaml")
    try:
        run_experiment(parser.parse_args().name)
    except UserError as error:
        sys.exit(f"dinv experiments: {error}")


if __name__ == "__main__":
    main()
