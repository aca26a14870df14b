"""All that the page shows of one run. A section is what it should be, or says what is missing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from dinv.classify.arms import Arm, baselines, image_sets
from dinv.errors import UserError
from dinv.report.charts import LineChart
from dinv.report.cost import StageCost, cost_section
from dinv.report.facts import Licence, about, licences, versions
from dinv.report.files import Files, table, yaml
from dinv.report.pictures import (
    Judged,
    Made,
    Nearest,
    Picture,
    Sets,
    first_of_each_class,
    grid,
    judged,
    nearest,
)
from dinv.report.pilots import Pilot, pilots
from dinv.report.scores import (
    SCORES,
    Arms,
    Classes,
    Confusions,
    arms_section,
    classes_section,
    classifier_curves,
    confusions_section,
    learned_curves,
    num_test_images,
)
from dinv.report.verdict import Verdict, chosen_by_validation, verdicts

T = TypeVar("T")
MEMORISATION = {
    "nearest_train_distance": "median distance to the nearest training image",
    "nearest_unseen_distance": "to the nearest of as many unseen ones",
    "share_nearer_train": "share nearer to training images",
}


@dataclass(frozen=True)
class Missing:
    """A section that cannot be shown, and why."""

    reason: str


@dataclass(frozen=True)
class Memorisation:
    """How near one image set comes to training images: texts by column."""

    features: str
    images: str
    cells: list[str]


@dataclass(frozen=True)
class Run:
    """One run, section by section."""

    name: str
    about: list[str]
    params: Mapping[str, Any]
    scores: pd.DataFrame
    stale: list[str]
    verdicts: list[Verdict]
    chosen: Verdict | None
    arms: Arms
    classes: Classes | Missing
    confusions: Confusions | Missing
    classifier_curves: LineChart | Missing
    learned_curves: LineChart | Missing
    grid: Picture | Missing
    pairs: list[Made] | Missing
    judged: Judged | Missing
    memorisation: list[Memorisation] | Missing
    nearest: Nearest | Missing
    cost: list[StageCost] | Missing
    licences: list[Licence] | Missing
    versions: dict[str, str]
    pilots: list[Pilot] | Missing

    @property
    def headline(self) -> list[Verdict]:
        """The arm that validation chose; without validation, all."""
        return self.verdicts if self.chosen is None else [self.chosen]

    @property
    def missing(self) -> dict[str, str]:
        """Section -> why it is not there."""
        return {name: value.reason for name, value in vars(self).items() if isinstance(value, Missing)}


def read_run(files: Files) -> Run:
    """Read all; raises UserError without params.yaml, metrics/accuracy.csv or an arm to compare."""
    params = yaml(files, "params.yaml")
    arms = read_arms(files, params)
    against = baselines(arms)
    scores = table(files, "metrics/accuracy.csv", SCORES)
    found = verdicts(scores, against)
    if not found:
        raise UserError(f"{files.name}: arms: none learns from generated images beside one that does not")
    chosen = chosen_by_validation(scores, found)
    arm, baseline = _first(found, chosen, arms)
    images = arms[arm].images
    opened = _once(lambda: Sets(files, images))
    return Run(
        files.name,
        about(params, num_test_images(files, baseline)),
        params,
        scores,
        stale(files, params),
        found,
        chosen,
        arms_section(files, scores, arms, against),
        tried(lambda: classes_section(files, arm, baseline)),
        tried(lambda: confusions_section(files, arm, baseline)),
        tried(lambda: classifier_curves(files)),
        tried(lambda: learned_curves(files)),
        tried(lambda: grid(files)),
        tried(lambda: first_of_each_class(opened())),
        tried(lambda: judged(opened(), baseline)),
        tried(lambda: memorisation(files, params, arms)),
        tried(lambda: _nearest(opened(), params)),
        tried(lambda: cost_section(files, params, arms)),
        tried(lambda: licences(files, params)),
        versions(files),
        tried(lambda: pilots(files)),
    )


def tried(build: Callable[[], T]) -> T | Missing:
    """A section, or why it cannot be shown."""
    try:
        return build()
    except UserError as error:
        return Missing(str(error))


def _once(make: Callable[[], T]) -> Callable[[], T]:
    """Make something at the first call only; a failure is tried again, and fails again."""
    made: list[T] = []

    def get() -> T:
        if not made:
            made.append(make())
        return made[0]

    return get


def _first(found: list[Verdict], chosen: Verdict | None, arms: Mapping[str, Arm]) -> tuple[str, str]:
    """The arm that sections about one arm are of: validation's choice, else one that mixes, else the last."""
    mixing = [verdict for verdict in found if arms[verdict.arm].real]
    verdict = chosen or (mixing or found)[-1]
    return verdict.arm, verdict.baseline


def read_arms(files: Files, params: Mapping[str, Any]) -> dict[str, Arm]:
    """The section `arms`."""
    try:
        return {str(name): Arm.model_validate(arm) for name, arm in params["arms"].items()}
    except (KeyError, AttributeError, ValidationError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{files.name}: params.yaml: arms: missing or not as this version has them ({reason})"
        ) from error


def stale(files: Files, params: Mapping[str, Any]) -> list[str]:
    """Stages that dvc.lock has with other parameters than params.yaml: their results are of before."""
    try:
        stages = yaml(files, "dvc.lock").get("stages", {})
    except UserError:
        return []
    known = {name: entry.get("params", {}).get("params.yaml", {}) for name, entry in stages.items()}
    return [name for name, used in known.items() if any(_at(params, k) != v for k, v in used.items())]


def _at(params: Any, name: str) -> Any:
    for part in name.split("."):
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


def memorisation(files: Files, params: Mapping[str, Any], arms: Mapping[str, Arm]) -> list[Memorisation]:
    """What `measure` has found, for generated sets and unseen real images."""
    rows: list[Memorisation] = []
    for features in params.get("measure", {}).get("features", {}):
        numbers = table(files, f"metrics/image_sets/{features}.csv", ["images", "metric", "value", "std"])
        for name in (*image_sets(arms), "unseen"):
            of_set = numbers[numbers["images"] == name].drop_duplicates("metric").set_index("metric")
            known = [metric for metric in MEMORISATION if metric in of_set.index]
            cells = [f"{of_set['value'][m]:.3f} ± {of_set['std'][m]:.3f}" for m in known]
            if len(cells) == len(MEMORISATION):
                rows.append(Memorisation(str(features), name, cells))
    if not rows:
        raise UserError(f"{files.name}: metrics/image_sets: no numbers of nearness; run dvc repro measure")
    return rows


def _nearest(sets: Sets, params: Mapping[str, Any]) -> Nearest:
    measure = params.get("measure", {})
    features = next(iter(measure.get("features", {})), None)
    if features is None:
        raise UserError("measure.features: names no network; add one")
    return nearest(sets, str(features), int(measure["num_images"]), int(measure["seed"]))
