"""What an experiment is: a file of experiments/, typed and validated."""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.classify.arms import baselines, image_sets
from dinv.errors import UserError
from dinv.metrics.image_sets import REAL, UNSEEN
from dinv.params import Params, parse_params
from dinv.section import did_you_mean
from dinv.sources.validation import has_validation

FOLDER = Path("experiments")
CELL, ARM = "cell", "arm"
SIZE = "data.num_per_class"
HELDOUT = "heldout_loss"
OF_CLASSIFIERS = ("top1_accuracy", "balanced_accuracy", "expected_calibration_error")
Settings = dict[str, Any]  # "section.key" or "section.block.key" -> value
Typed = TypeVar("Typed", bound=BaseModel)
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Figure(BaseModel):
    """Means over seeds with bars of one standard deviation, one line per colour.

    `x` and `color` are parameters of the grid, `cell` or `arm`; `columns` makes one panel per value. `metric`
    is a number of classifiers, in percent, or heldout_loss, or FEATURES.METRIC of image sets.
    """

    model_config = _STRICT
    x: str
    color: str = ARM
    columns: str | None = None
    log_x: bool = False
    metric: str = OF_CLASSIFIERS[0]


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
        extends: another experiment, which may extend a third; what they set comes before this one's `set`.
        set: parameters that differ from params.yaml in every run; names as `changed` reads them.
        grid: parameters with the values to combine.
        cells: settings that change together, by name; combined with the grid.
        arms: what the table and the figure show: arms of params.yaml, all if none is named. If figure.metric
            is no number of classifiers: blocks of `invert`, or image sets.
        worth: arms that a second table translates into numbers of real images, for a grid of
            data.num_per_class.
        best: whether a further table compares the best arm without generated images with the best with
            them, each picked by validation accuracy.
        pool: a parameter of the grid, such as data.seed, whose values count as further seeds.
        split: `val` where a parameter is chosen by the answer, `test` only where none is.
        figure: how it is drawn.
    """

    model_config = _STRICT
    question: str
    extends: str | None = None
    set: Settings = {}
    grid: dict[str, list[Any]] = {}
    cells: dict[str, Settings] = {}
    arms: list[str] = []
    worth: list[str] = []
    best: bool = False
    pool: str | None = None
    split: Literal["val", "test"] | None = None
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


def read_typed(path: Path, model: type[Typed], what: str) -> Typed:
    """Read a YAML file as a model; raises UserError when it is missing, with its neighbours, or wrong."""
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UserError(f"{path}: no such {what}; there are {known or 'none'}")
    try:
        return model.model_validate(YAML(typ="safe").load(path.read_text()))
    except (YAMLError, ValidationError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error


def load_experiment(name: str, base: dict[str, Any]) -> Experiment:
    """Read experiments/<name>.yaml and check every run's parameters against those of params.yaml.

    Args:
        name: file name without suffix.
        base: the sections of params.yaml.

    Returns:
        The experiment, its arms all named and in the order of its parameters.

    Raises:
        UserError: there is no such file, or what it says is unknown, out of range or without effect.
    """
    path = FOLDER / f"{name}.yaml"
    experiment = _extended(name, path)
    _check_names(experiment, path)
    for run in experiment.runs():
        _check_split(experiment, parse_params(changed(base, run.settings, path), str(path)), path)
    return _with_arms(experiment, parse_params(changed(base, experiment.set, path), str(path)), path)


def _extended(name: str, path: Path, *below: str) -> Experiment:
    """An experiment with what those that it extends set before; `below` are those that extend it."""
    if name in below:
        raise UserError(f"{path}: extends: {' -> '.join([*below, name])} comes to no end")
    experiment = read_typed(FOLDER / f"{name}.yaml", Experiment, "experiment")
    if experiment.extends is None:
        return experiment
    parent = _extended(experiment.extends, path, *below, name)
    return experiment.model_copy(update={"set": {**parent.set, **experiment.set}})


def changed(base: dict[str, Any], settings: Settings, path: Path) -> dict[str, Any]:
    """The sections of a parameter file with some values replaced; raises UserError on unknown names.

    As in `dvc exp run -S`, a name with a plus before it may be new, and one with a tilde is taken away; its
    value says nothing.
    """
    sections = copy.deepcopy(base)
    for name, value in settings.items():
        *blocks, key = name.removeprefix("+").removeprefix("~").split(".")
        place: Any = sections
        for block in blocks:
            place = inside(place, block)
        if not isinstance(place, dict) or (key not in place and not name.startswith("+")):
            help_ = did_you_mean(key, place) if isinstance(place, dict) else ""
            raise UserError(
                f"{path}: {name}: no such parameter{help_}; write section.key or section.block.key as in "
                "params.yaml"
            )
        if name.startswith("~"):
            del place[key]
        else:
            place[key] = copy.deepcopy(value)  # a later setting may change a part of it
    return sections


def inside(place: Any, key: str) -> Any:
    """What is under a name, or at a place of a list, as in members.0; None if nothing is."""
    if isinstance(place, list):
        return place[int(key)] if key.isdecimal() and int(key) < len(place) else None
    return place.get(key) if isinstance(place, dict) else None


def _check_names(experiment: Experiment, path: Path) -> None:
    if experiment.pool is not None and experiment.pool not in experiment.grid:
        raise UserError(f"{path}: pool: {experiment.pool} is not in the grid; add it with its values")
    if experiment.worth and (experiment.columns != [SIZE] or len(experiment.grid[SIZE]) < 2):
        raise UserError(f"{path}: worth: the grid must be {SIZE} with several values, and nothing else")
    figure, columns = experiment.figure, [ARM, *experiment.columns]
    for name in (figure.x, figure.color, figure.columns):
        if name is not None and name not in columns:
            raise UserError(
                f"{path}: figure: {name} does not differ between runs; use one of {', '.join(columns)}"
            )


def _check_split(experiment: Experiment, params: Params, path: Path) -> None:
    """A split is named if and only if the metric needs one, and will have images."""
    metric = experiment.figure.metric
    if metric in OF_CLASSIFIERS and experiment.split is None:
        raise UserError(f"{path}: split: missing; write val where a parameter is chosen, else test")
    if metric not in OF_CLASSIFIERS and experiment.split is not None:
        raise UserError(f"{path}: split: {metric} is not measured on a split; remove it")
    if experiment.best and experiment.split != "test":
        raise UserError(f"{path}: best: arms are picked on val and compared on test; write split: test")
    if (experiment.split == "val" or experiment.best) and not has_validation(params.data):
        needs = "best: true" if experiment.best else "split: val"
        raise UserError(
            f"{path}: {needs}, but data.num_val_per_class = 0 and {params.data.source} brings no "
            "validation images of its own; set data.num_val_per_class, in params.yaml or in the experiment"
        )


def _with_arms(experiment: Experiment, params: Params, path: Path) -> Experiment:
    """Names of arms, or of what else the metric is measured on, checked and in order."""
    known = _series(experiment.figure.metric, params, path)
    unknown = [arm for arm in (*experiment.arms, *experiment.worth) if arm not in known]
    if unknown:
        raise UserError(f"{path}: {unknown[0]}: no such arm; there are {', '.join(known)}")
    arms = [arm for arm in known if arm in experiment.arms or not experiment.arms]
    for arm in experiment.worth:
        if baselines(params.arms).get(arm) not in arms:
            raise UserError(f"{path}: worth: {arm} has no baseline of real images among {', '.join(arms)}")
    return experiment.model_copy(update={"arms": arms})


def _series(metric: str, params: Params, path: Path) -> list[str]:
    """What a metric has values for."""
    if metric in OF_CLASSIFIERS:
        return list(params.arms)
    if metric == HELDOUT:
        return list(params.invert)
    if metric.partition(".")[0] not in params.measure.features:
        known = ", ".join([*OF_CLASSIFIERS, HELDOUT, *(f"{name}.METRIC" for name in params.measure.features)])
        raise UserError(f"{path}: figure.metric = {metric!r}: no such metric; there are {known}")
    return [REAL, *image_sets(params.arms), UNSEEN]
