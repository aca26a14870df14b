"""What classifiers cost, and what is measured: stages train, measure and evaluate."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.arms import Arm, image_sets
from dinv.classify.base import LabelledImages, LearnerParams, TrainingSet
from dinv.classify.clip_based import ClipNetwork, ClipParams
from dinv.classify.cross_validation import NUM_FOLDS
from dinv.classify.ensemble import EnsembleParams
from dinv.classify.frozen import find_network
from dinv.classify.heads import fit_logistic, fit_svc
from dinv.classify.probe import ProbeParams
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier, predict_proba, save_classifier
from dinv.classify.strength import MOST_TRIED
from dinv.classify.training import TrainingParams
from dinv.estimate.measure import NOTHING, Clock, Range, fitting_size, timed
from dinv.estimate.sample import SECONDS, Sample
from dinv.estimate.stages import NUM_TIMED, Cost
from dinv.execution.parts import to_bytes
from dinv.features.cache import Extraction, Network
from dinv.features.params import FeatureNetwork
from dinv.metrics.image_sets import REAL, image_set_numbers

MOST_TIMED = 300  # images that a probe or a distance is timed with


def train_cost(arm: Arm, num_made: int, sample: Sample) -> Cost:
    """Of one arm; `num_made` images are generated for it."""
    return learner_cost(sample.params.train[arm.learner], arm, num_made, sample)


def learner_cost(params: LearnerParams, arm: Arm, num_made: int, sample: Sample) -> Cost:
    """Of an arm's learner."""
    if isinstance(params, EnsembleParams):
        return ensemble_cost(params, arm, num_made, sample)
    if isinstance(params, ProbeParams):
        return probe_cost(params, arm, num_made, sample)
    if isinstance(params, TrainingParams):
        return network_cost(params, arm, sample)
    if isinstance(params, ClipParams):
        return clip_cost(params, arm, num_made, sample)
    return Cost(note=f"learner {params.learner} is not known to dinv estimate")


def shown(sample: Sample, arm: Arm) -> TrainingSet:
    """The sample's images in place of real and of generated ones: what they show costs no time."""
    targets = np.eye(len(sample.small.class_names), dtype=np.float32)[sample.small.labels]
    real = LabelledImages(sample.small.tensor(), torch.from_numpy(targets))
    made = LabelledImages(real.images, real.targets, torch.arange(len(real)))
    sources = [real] if arm.only_real else [real, made] if arm.real else [made]
    return TrainingSet(sources, real, sample.small.class_names)


def network_cost(params: TrainingParams, arm: Arm, sample: Sample) -> Cost:
    """A network trained on pixels: a few steps, and what comes before them."""
    few = params.model_copy(update={"num_steps": NUM_TIMED + 1, "warmup_steps": 0, **_whole(params)})
    learner, clock = LEARNERS[params.learner], Clock(sample.device)
    fitted = learner.fit(shown(sample, arm), few, 0, sample.device, clock.advance)
    step = Range.of(clock.steps[1:])
    ends = max(0.0, clock.total() - sum(clock.steps[1:]) - step.median)
    stored = StoredClassifier(params.learner, fitted, 0, 0)
    n, disk = len(params.seeds), len(to_bytes(partial(save_classifier, stored)))
    work = {"classifier steps": n * params.num_steps}
    seconds = (step * params.num_steps + Range(ends, ends, ends)) * n
    times = 1 if arm.only_real else num_trainings(params) / n
    seconds, work = seconds * times, {name: round(times * count) for name, count in work.items()}
    images, predict = sample.small.tensor(), stored.on(sample.device)
    looks = [
        timed(lambda: predict_proba(predict, images, sample.device), sample.device) for _ in range(NUM_TIMED)
    ]
    return Cost(seconds, work, n * disk, look=Range.of(looks) * (n / len(images)))


def num_trainings(params: TrainingParams) -> int:
    """Of an arm with generated images: its own, its teachers', those that choose its share of real ones."""
    n = len(params.seeds)
    teachers = n * params.teacher_rounds if params.asks_a_teacher else 0
    chooses = params.choose_real == "cross_validation"
    return n + teachers + (len(params.choose_real_from) * params.choose_real_folds if chooses else 0)


def ensemble_cost(params: EnsembleParams, arm: Arm, num_made: int, sample: Sample) -> Cost:
    """Of all members, and of as many again where they say what generated images show."""
    total, work = Cost(), Counter[str]()
    for member in params.members:
        cost = learner_cost(member.model_copy(update={"seeds": params.seeds}), arm, num_made, sample)
        if cost.note:
            return cost
        work.update(cost.work)
        seconds, look = total.seconds + cost.seconds, total.look + cost.look
        total = replace(total, seconds=seconds, disk=total.disk + cost.disk, look=look)
    times = 1 + (params.teacher_rounds if params.asks_a_teacher and not arm.only_real else 0)
    of_all = {item: times * count for item, count in work.items()}
    return replace(total, seconds=total.seconds * times, work=of_all)


def _whole(params: TrainingParams) -> dict[str, int]:
    """Where a learner trains its last layer alone at first: all layers, which costs more."""
    return {"head_steps": 0} if "head_steps" in type(params).model_fields else {}


def probe_cost(params: ProbeParams, arm: Arm, num_made: int, sample: Sample) -> Cost:
    """Features of all images, which other probes of the same network share, and a fit of some of them.

    The time of a fit grows with the number of images, at most with its square.
    """
    extract, width = features_cost(find_network(params.features), sample)
    n = (sample.num_train if arm.only_real or arm.real else 0) + (0 if arm.only_real else num_made)
    m = min(n, MOST_TIMED)
    fit = fit_seconds(params, width, sample, m)
    seeds = len(params.seeds)
    work = {"images to have features of": n, "probes": seeds}
    disk = seeds * (n if params.classifier == "svc" else len(sample.small.class_names)) * width * 8
    return Cost(extract * n + grown(fit, m, n) * seeds, work, round(disk), look=extract * seeds)


def clip_cost(params: ClipParams, arm: Arm, num_made: int, sample: Sample) -> Cost:
    """A learner on CLIP: features of every view of every image, drawn anew by each seed, then its own work.

    That work is timed with few steps, where there are any, and with features that are known already.
    """
    network = ClipNetwork.of(params.path)
    extract, _ = features_cost(network.images, sample)
    learner, few = LEARNERS[params.learner], params.model_copy(update=_few_steps(params))
    learner.fit(shown(sample, arm), few, 0, sample.device, lambda n: None)  # finds the features
    clock = Clock(sample.device)
    fitted = learner.fit(shown(sample, arm), few, 0, sample.device, clock.advance)
    steps, total = clock.steps, clock.total()
    seeds, num_steps = len(params.seeds), getattr(params, "num_steps", 0)
    step = Range.of(steps[1:]) if num_steps else NOTHING
    ends = max(0.0, total - step.median * len(steps)) if num_steps else total
    per_training = num_steps * getattr(params, "batch_size", 1)
    trainings = learner.num_units(params) // per_training if num_steps else 0
    n = (sample.num_train if arm.only_real or arm.real else 0) + (0 if arm.only_real else num_made)
    views = getattr(params, "num_views", 0)  # none: no image is looked at
    stored = StoredClassifier(params.learner, fitted, 0, 0)
    disk = seeds * len(to_bytes(partial(save_classifier, stored)))
    seen, steps_of_all = n * views, num_steps * trainings
    work = {"images to have features of": seeds * seen, "classifier steps": seeds * steps_of_all}
    seconds = (extract * seen + step * steps_of_all + Range(ends, ends, ends)) * seeds
    return Cost(seconds, {item: count for item, count in work.items() if count}, disk, look=extract * seeds)


def _few_steps(params: ClipParams) -> dict[str, int]:
    if not hasattr(params, "num_steps"):
        return {}
    return {"num_steps": NUM_TIMED + 1, **({"warmup_steps": 0} if hasattr(params, "warmup_steps") else {})}


def fit_seconds(params: ProbeParams, width: int, sample: Sample, m: int = MOST_TIMED) -> float:
    """Of a fit to m images with random features, and of the fits that choose C, where it is chosen."""
    c, fits = (1.0, 1 + MOST_TRIED * NUM_FOLDS) if isinstance(params.C, str) else (params.C, 1)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(m, width)))
    y, weight = torch.arange(m) % len(sample.small.class_names), torch.ones(m, dtype=torch.float64)
    if params.classifier == "logistic":
        return fits * timed(lambda: fit_logistic(x, y, weight, c), sample.device)
    return fits * timed(lambda: fit_svc(x, y, weight, c, params.kernel), sample.device)


def grown(seconds: float, m: int, n: int) -> Range:
    """What takes `seconds` for m images takes for n: between linear and quadratic growth."""
    factor = n / m
    return Range(seconds * min(factor, factor**2), seconds * factor**1.5, seconds * max(factor, factor**2))


def features_cost(network: Network, sample: Sample) -> tuple[Range, int]:
    """Seconds per image, and how many numbers an image has."""
    extract, images = network.open(sample.device), sample.small.images
    one = timed(lambda: extract(images[:1]), sample.device)
    size = fitting_size(one, sample.micro_batch, SECONDS)
    seen = [timed(lambda: extract(images[:size]), sample.device) for _ in range(NUM_TIMED)]
    return Range.of(seen) * (1 / size), int(extract(images[:1]).shape[1])


def measure_cost(network: FeatureNetwork, num_made: Mapping[str, int], sample: Sample) -> Cost:
    """One block of `measure`: features of every image set that arms use, and the distances between them."""
    m, task = sample.params.measure, sample.task
    available = {REAL: len(task.train), **num_made}
    largest = min(m.num_images, len(task.test) // 2)
    if min([largest, *available.values()]) <= m.num_neighbors:
        return Cost(work={"images to have features of": 0})
    looked_at = {name: min(n, m.num_images) for name, n in available.items()}
    n = sum(looked_at.values()) + min(len(task.test), 4 * m.num_images)
    extract, width = features_cost(Extraction.of(network), sample)
    small = max(m.num_neighbors + 2, min(largest, MOST_TIMED))
    rng = np.random.default_rng(0)

    def features(rows: int) -> NDArray[np.float32]:
        return rng.normal(size=(rows, width)).astype(np.float32)

    sets = {name: features(min(size, small)) for name, size in looked_at.items()}
    sizes = sorted({min(size, small) for size in looked_at.values()})
    compare = partial(image_set_numbers, "", sets, features(2 * small), sizes, m.num_neighbors, 1, 0)
    distances = grown(timed(compare, sample.device), small, largest) * m.num_draws
    return Cost(extract * n + distances, {"images to have features of": n}, n * width * 4)


def evaluate_cost(trained: Mapping[str, Cost], sample: Sample) -> Cost:
    """Every classifier looks at every validation and test image."""
    n = len(sample.task.val) + len(sample.task.test)
    seconds = NOTHING
    for arm in trained.values():
        seconds = seconds + arm.look * n
    num_classifiers = sum(len(sample.params.train[arm.learner].seeds) for arm in sample.params.arms.values())
    return Cost(seconds, {"images looked at": n * num_classifiers})


def made_for(arms: Mapping[str, Arm], costs: Mapping[str, Cost]) -> dict[str, int]:
    """How many images each image set of the arms has; 0 where its block could not be estimated."""
    return {name: costs[name].work.get("images", 0) for name in image_sets(arms)}
