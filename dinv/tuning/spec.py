"""What is tuned: a file of tune/, typed and validated. Each arm has its own space and as many trials."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dinv.classify.base import MixedParams
from dinv.errors import UserError
from dinv.experiments.spec import Settings, changed, read_typed
from dinv.params import LEARNED, Params, parse_params
from dinv.section import PositiveInt, Seed

FOLDER = Path("tune")
Scoring = Literal["auto", "cross_validation", "validation"]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Range(BaseModel):
    """Numbers from `low` to `high`, both included, whole ones if both are; `log`: even in the logarithm."""

    model_config = _STRICT
    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 where log is true")
        return self


Choices = Annotated[list[str | int | float | bool | None], Field(min_length=2)]
Space = dict[str, Range | Choices]


class Tuning(BaseModel):
    """One question and the search that answers it.

    Attributes:
        question: one sentence.
        trials: how many settings are tried for every arm, the present ones first.
        score: cross_validation: mean accuracy on the held-out images of every fold | validation: accuracy on
            data/real/val | auto: validation if that has at most as many images of each class as training.
        folds: at most so many; a class with fewer images allows as many as it has.
        repeats: how often the images are divided anew into folds; with `validation` trainings per trial.
        seed: decides on folds, on classifiers' randomness and on what is tried.
        set: parameters that differ from params.yaml in every trial.
        arms: arms of params.yaml, each with parameters and what is tried: a range or a list of choices.
    """

    model_config = _STRICT
    question: str
    trials: PositiveInt
    score: Scoring = "auto"
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: PositiveInt = 1
    seed: Seed = 0
    set: Settings = {}
    arms: Annotated[dict[str, Space], Field(min_length=1)]


def load_tuning(name: str, base: dict[str, Any]) -> Tuning:
    """Read tune/<name>.yaml and check every parameter's values against params.yaml.

    Args:
        name: file name without suffix.
        base: the sections of params.yaml.

    Raises:
        UserError: there is no such file, or what it says is unknown, out of range or without effect.
    """
    path = FOLDER / f"{name}.yaml"
    tuning = read_typed(path, Tuning, "file")
    check(tuning, base, path)
    return tuning


def check(tuning: Tuning, base: dict[str, Any], path: Path) -> None:
    """Raise UserError for an arm or a parameter that is not there, has no effect, or takes no such value."""
    sections = changed(base, tuning.set, path)
    params = parse_params(sections, str(path))
    for arm, space in tuning.arms.items():
        if arm not in params.arms:
            raise UserError(f"{path}: arms.{arm}: no such arm; there are {', '.join(params.arms)}")
        blocks = effective_blocks(params, arm)
        learner = params.train[params.arms[arm].learner]
        if isinstance(learner, MixedParams) and learner.choose_real != "none":
            raise UserError(
                f"{path}: arms.{arm}: {blocks[0]}.choose_real = {learner.choose_real!r}: set it to none, and "
                "let real_fraction be searched"
            )
        for name, values in space.items():
            if not name.startswith(tuple(f"{block}." for block in blocks)):
                raise UserError(
                    f"{path}: arms.{arm}: {name} has no effect on this arm; it depends on {', '.join(blocks)}"
                )
            for value in [values.low, values.high] if isinstance(values, Range) else values:
                parse_params(changed(sections, {name: value}, path), f"{path}: arms.{arm}")


def effective_blocks(params: Params, name: str) -> list[str]:
    """Blocks of params.yaml on which an arm's classifiers depend, as train.cnn."""
    arm = params.arms[name]
    blocks = [f"train.{arm.learner}"]
    if not arm.only_real:
        generated = arm.images.rpartition("/")[2]
        blocks.append(f"generate.{generated}")
        source = params.generate[generated].input
        if source.startswith(LEARNED):
            blocks.append(f"invert.{source.removeprefix(LEARNED)}")
    return blocks


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's."""
    return {name: _distribution(values) for name, values in space.items()}


def _distribution(values: Range | Choices) -> BaseDistribution:
    if not isinstance(values, Range):
        return CategoricalDistribution(values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def present(space: Space, sections: Mapping[str, Any]) -> Settings | None:
    """What params.yaml says of the parameters, if all of it lies in the space."""
    found: Settings = {}
    for name, values in space.items():
        value = at(sections, name)
        if not (_within(values, value) if isinstance(values, Range) else value in values):
            return None
        found[name] = value
    return found


def at(sections: Mapping[str, Any], name: str) -> Any:
    """What stands under a dotted name, of which numbers are places of lists."""
    found: Any = sections
    for key in name.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


def _within(values: Range, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and values.low <= value <= values.high
