"""How much of everything fits into the time: fewer visits, images and steps, fewer images of each class, and
where that is not enough fewer learners, on both sides alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dinv.classify.arms import Arm
from dinv.classify.base import LearnerParams
from dinv.classify.finetune import FinetuneParams
from dinv.classify.frozen import find_network
from dinv.classify.probe import ProbeParams
from dinv.classify.training import TrainingParams
from dinv.errors import UserError
from dinv.estimate.classifiers import MOST_TIMED, features_cost, fit_seconds, train_cost
from dinv.estimate.image_sets import generate_cost
from dinv.estimate.measure import Range
from dinv.estimate.sample import Sample
from dinv.estimate.stages import invert_cost
from dinv.params import LEARNED, Params
from dinv.pilot.design import FEWEST_TO_HALVE, Design
from dinv.pilot.settings import Competition

SHARE_OF_TIME = 0.8  # of the minutes: what was timed for seconds may be slower later
LARGE, SMALL = (1.0, 0.7, 0.5, 0.35, 0.25), (0.18, 0.125)
NO_TIME = "does not fit into the time"
# How many images a strategy makes of an embedding, of a source, or of a class.
OF_IMAGE, OF_CLASS = ("num_images_per_embedding", "num_images_per_source"), "num_images_per_class"


@dataclass(frozen=True)
class Units:
    """Seconds as measured, each for one.

    Attributes:
        visit: of an image in `invert`, with its share of what starts and ends that.
        image: that is generated.
        step: of the user's classifier; None: it is a probe.
        features: of an image, by probe.
        fit: of a probe to MOST_TIMED images, by probe.
        full_run: all that `dvc repro` would take for the blocks that the pilot is about.
    """

    visit: float
    image: float
    step: float | None
    features: Mapping[str, float]
    fit: Mapping[str, float]
    full_run: Range


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        num_blocks, block_size: as in Design.
        num_classes: M.
        num_visits: of an image in `invert`.
        num_images: generated per real image of the training set.
        num_steps: of every classifier that takes steps.
        learners: names.
        left_out: name -> why.
        minutes: that this takes, as measured.
        full_run: seconds that `dvc repro` takes, as measured: low, median, high.
    """

    num_blocks: int
    block_size: int
    num_classes: int
    num_visits: int
    num_images: float
    num_steps: int
    learners: list[str]
    left_out: dict[str, str]
    minutes: float
    full_run: tuple[float, float, float]

    @property
    def num_real(self) -> int:
        """Labelled images that are used."""
        return self.num_blocks * self.block_size * self.num_classes

    @cached_property
    def num_trainings(self) -> int:
        """Of each learner on each side."""
        labels = np.repeat(np.arange(self.num_classes), self.num_blocks * self.block_size)
        return len(Design(labels, [], self.num_blocks, 0).trainings())

    def text(self) -> str:
        """For people."""
        k, n = self.num_blocks * self.block_size, self.num_trainings
        steps = f" of {self.num_steps} steps" if self.num_steps else ""
        lines = [
            f"{self.num_real} labelled images: {k} per class, in {self.num_blocks} blocks",
            f"{self.num_visits} visits of each, {self.num_real * self.num_images:.0f} images to generate",
            f"{2 * len(self.learners) * n} classifiers{steps}, {n} without and {n} with generated images of "
            f"each of {', '.join(self.learners)}",
            *(f"left out: {name}: {reason}" for name, reason in self.left_out.items()),
            f"about {self.minutes:.1f} minutes as measured",
        ]
        return "\n".join(lines)


def measured(params: Params, found: Competition, sample: Sample) -> Units:
    """Time one of everything."""
    generate = params.generate[found.generate]
    full = train = Range(0.0, 0.0, 0.0)
    visit = 0.0
    if generate.input.startswith(LEARNED):
        method = params.invert[generate.input.removeprefix(LEARNED)]
        cost = invert_cost(method, sample)
        _require(cost.note)
        full = full + cost.seconds
        visit = cost.seconds.median / max(1, sample.num_train * getattr(method, "num_visits", 1))
    made = generate_cost(generate, sample)
    _require(made.note)
    step, arm = None, next(a for a in params.arms.values() if a.images.endswith(f"/{found.generate}"))
    own = params.train[arm.learner]
    if isinstance(own, TrainingParams):
        train = train_cost(Arm(images=arm.images, real=True, learner=arm.learner), 1, sample).seconds
        step = train.median / (own.num_steps * len(own.seeds))
    probes = {name: p for name, p in found.learners.items() if isinstance(p, ProbeParams)}
    looks = {name: features_cost(find_network(p.features), sample) for name, p in probes.items()}
    features = {name: seconds.median for name, (seconds, _) in looks.items()}
    fit = {name: fit_seconds(probes[name], width, sample) for name, (_, width) in looks.items()}
    image = made.seconds.median / max(1, made.work["images"])
    return Units(visit, image, step, features, fit, full + made.seconds + train * 2)


def _require(note: str) -> None:
    if note:
        raise UserError(f"{note}; a pilot cannot plan what it cannot time")


def make_plan(
    params: Params, found: Competition, units: Units, sizes: tuple[int, int, int], minutes: float
) -> Plan:
    """The first candidate that fits; the smallest, if none does.

    Args:
        params: all of params.yaml.
        found: what would compete if there were time for all.
        units: what one of everything takes.
        sizes: images of each class in a block, if there is time for all; blocks; classes.
        minutes: to be kept to.
    """
    most, num_blocks, num_classes = sizes
    for chosen, size, effort in candidates(found, most):
        plan = _plan(params, chosen, units, (num_blocks, size, num_classes), effort)
        if plan.minutes <= SHARE_OF_TIME * minutes:
            break
    return plan


def candidates(found: Competition, most: int) -> Iterator[tuple[Competition, int, float]]:
    """Learners, images of each class in a block, share of the work on each: in order of preference."""
    sizes = [most]
    while sizes[-1] // 2 >= FEWEST_TO_HALVE:
        sizes.append(sizes[-1] // 2)
    sizes += [2] if sizes[-1] > 2 else []
    fewer = found.only(lambda p: getattr(p, "rand_augment_ops", 0) == 0 or p in _own(found), NO_TIME)
    probes = found.only(lambda p: isinstance(p, ProbeParams), NO_TIME)
    yield from ((who, size, effort) for size in sizes for who in (found, fewer) for effort in LARGE)
    yield from ((fewer, size, effort) for size in sizes for effort in SMALL)
    yield from ((probes, size, effort) for size in sizes for effort in (*LARGE, *SMALL))


def _own(found: Competition) -> list[LearnerParams]:
    return list(found.learners.values())[:1]


def _plan(
    params: Params, found: Competition, units: Units, sizes: tuple[int, int, int], effort: float
) -> Plan:
    """What a share of the user's own settings means, and how long it takes."""
    generate = params.generate[found.generate]
    num_blocks, size, num_classes = sizes
    of_image = next((getattr(generate, name) for name in OF_IMAGE if hasattr(generate, name)), None)
    per_class = getattr(generate, OF_CLASS, None)
    method = params.invert.get(generate.input.removeprefix(LEARNED))
    visits = getattr(method, "num_visits", 0)
    steps = max((getattr(p, "num_steps", 0) for p in found.learners.values()), default=0)
    images: float = 1.0
    if of_image is not None:
        images = max(min(2, of_image), round(effort * of_image))
    elif per_class is not None:
        images = max(1.0, effort * per_class / params_images(params, size, num_blocks))
    full = (units.full_run.low, units.full_run.median, units.full_run.high)
    plan = Plan(
        num_blocks,
        size,
        num_classes,
        max(min(5, visits), round(effort * visits)),
        images,
        max(min(30, steps), round(effort * steps)),
        list(found.learners),
        found.left_out,
        0.0,
        full,
    )
    return replace(plan, minutes=round(_seconds(plan, found, units) / 60, 2))


def whole_plan(params: Params, found: Competition, k: int, num_classes: int) -> Plan:
    """Nothing smaller than in params.yaml, with k labelled images of each class in one block."""
    none = dict.fromkeys(found.learners, 0.0)
    return _plan(
        params, found, Units(0.0, 0.0, 0.0, none, none, Range(0.0, 0.0, 0.0)), (1, k, num_classes), 1.0
    )


def params_images(params: Params, size: int, num_blocks: int) -> int:
    """Labelled images of each class in a full run, as far as that is known."""
    return params.data.num_per_class or size * num_blocks


def _seconds(plan: Plan, found: Competition, units: Units) -> float:
    made = plan.num_real * plan.num_images
    seconds = plan.num_real * plan.num_visits * units.visit + made * units.image
    for name, params in found.learners.items():
        both = 2 * plan.num_trainings
        if isinstance(params, ProbeParams):
            largest = (plan.num_real + made) / MOST_TIMED  # of all fits this is the slowest
            seconds += (plan.num_real + made) * units.features[name] + both * largest * units.fit[name]
        else:
            seconds += both * plan.num_steps * (units.step or 0.0) * _slower(params)
    return seconds


def _slower(params: LearnerParams) -> float:
    """A step of a learner that competes, in steps of the user's: as measured on the bundled tasks."""
    if isinstance(params, FinetuneParams):
        return 1.8
    return 1.7 if getattr(params, "rand_augment_ops", 0) > 0 else 1.0


def scaled_learner(params: LearnerParams, plan: Plan) -> LearnerParams:
    """With the plan's number of steps; what counts steps besides shrinks alike."""
    if not isinstance(params, TrainingParams):
        return params
    share = plan.num_steps / params.num_steps
    update: dict[str, Any] = {"num_steps": plan.num_steps, "warmup_steps": int(params.warmup_steps * share)}
    if hasattr(params, "head_steps"):
        update["head_steps"] = int(params.head_steps * share)
    return params.model_copy(update=update)


def scaled_block(params: Any, plan: Plan) -> Any:
    """A block of `invert` or `generate` with the plan's numbers of visits and images."""
    update: dict[str, Any] = {name: int(plan.num_images) for name in OF_IMAGE if hasattr(params, name)}
    if hasattr(params, OF_CLASS):
        update[OF_CLASS] = max(1, round(plan.num_images * plan.block_size))
    if hasattr(params, "num_visits"):
        update["num_visits"] = plan.num_visits
    return params.model_copy(update=update)


def as_json(plan: Plan) -> dict[str, Any]:
    """Its fields."""
    return asdict(plan)
