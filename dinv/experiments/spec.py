"""What an experiment is: a file of experiments/, typed and validated."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.errors import UserError
from dinv.params import ARMS, Params, parse_params

FOLDER = Path("experiments")
CELL = "cell"
Settings = dict[str, Any]  # "section.key" -> value
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Figure(BaseModel):
    """Means over seeds with bars of one standard deviation, one line per colour.

    `x` and `color` are parameters of the grid, `cell` or `arm`; `columns` makes one panel per value.
    """

    model_config = _STRICT
    x: str
    color: str = "arm"
    columns: str | None = None
    log_x: bool = False
    metric: str = "top1_accuracy"


@dataclass(frozen=True)
class Run:
    """One `dvc exp run`: its place among the others, and all parameters that it changes."""

    place: Settings
    settings: Settings

    def label(self) -> str:
        """The place as a name for git, such as noise_std-1.5-num_images_per_embedding-10."""
        text = "-".join(f"{name.split('.')[-1]}-{value}" for name, value in self.place.items())
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


class Experiment(BaseModel):
    """One question, the runs that answer it, and how the answer is drawn.

    Attributes:
        question: one sentence.
        set: parameters that differ from params.yaml in every run.
        grid: parameters with the values to combine.
        cells: settings that change together, by name; combined with the grid.
        arms: what the table and the figure show.
        pool: a parameter of the grid, such as data.seed, whose values count as further seeds.
        split: `val` where a parameter is chosen by the answer, `test` only where none is.
        figure: how it is drawn.
    """

    model_config = _STRICT
    question: str
    set: Settings = {}
    grid: dict[str, list[Any]] = {}
    cells: dict[str, Settings] = {}
    arms: list[Literal["real", "reconstruction", "synthetic", "mixed"]] = list(ARMS)  # type: ignore[arg-type]
    pool: str | None = None
    split: Literal["val", "test"]
    figure: Figure

    @property
    def columns(self) -> list[str]:
        """What tells the answers apart: `cell`, if there are cells, and the grid but for `pool`."""
        return [*([CELL] if self.cells else []), *(name for name in self.grid if name != self.pool)]

    def runs(self) -> list[Run]:
        """All combinations of cells and grid, in order."""
        values = itertools.product(*self.grid.values())
        points = [dict(zip(self.grid, combination, strict=True)) for combination in values]
        cells = self.cells or {"": {}}
        return [
            Run({**({CELL: name} if name else {}), **point}, {**self.set, **cell, **point})
            for name, cell in cells.items()
            for point in points
        ]


def load_experiment(name: str, base: dict[str, Any]) -> Experiment:
    """Read experiments/<name>.yaml and check every run's parameters against those of params.yaml.

    Args:
        name: file name without suffix.
        base: the sections of params.yaml.

    Raises:
        UserError: there is no such file, or a parameter of it is unknown or out of range.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise UserError(f"{path}: no such experiment; there are {known}")
    try:
        experiment = Experiment.model_validate(YAML(typ="safe").load(path.read_text()))
    except (YAMLError, ValidationError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    _check_names(experiment, path)
    for run in experiment.runs():
        parse_params(changed(base, run.settings, path), str(path))
    return experiment


def changed(base: dict[str, Any], settings: Settings, path: Path) -> dict[str, Any]:
    """The sections of a parameter file with some values replaced; raises UserError on unknown names."""
    sections = {name: dict(values) for name, values in base.items()}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        if key not in sections.get(section, {}):
            known = ", ".join(Params.model_fields)
            raise UserError(f"{path}: {name}: no such parameter; write section.key, sections are {known}")
        sections[section][key] = value
    return sections


def _check_names(experiment: Experiment, path: Path) -> None:
    if experiment.pool is not None and experiment.pool not in experiment.grid:
        raise UserError(f"{path}: pool: {experiment.pool} is not in the grid; add it with its values")
    figure, columns = experiment.figure, ["arm", *experiment.columns]
    for name in (figure.x, figure.color, figure.columns):
        if name is not None and name not in columns:
            raise UserError(
                f"{path}: figure: {name} does not differ between runs; use one of {', '.join(columns)}"
            )


def values_of(rows: Sequence[dict[str, Any]], column: str) -> list[Any]:
    """Distinct values of a column, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in rows))
