"""What each stage costs: a little of its own work is done and timed, and counted up to the whole.

Work is done by the workers and learners that the stages use. The first call warms up and is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from dinv.errors import UserError
from dinv.estimate.measure import NOTHING, Clock, Memory, Range, fitting_size, peak_memory, timed
from dinv.estimate.sample import SECONDS, Sample
from dinv.execution.parts import to_bytes
from dinv.images.image_set import write_parquet
from dinv.inversion.base import MethodParams, Place
from dinv.inversion.class_embeddings import ClassEmbeddingsParams, ClassTask, ClassWorker
from dinv.inversion.class_lora import ClassLoraWorker
from dinv.inversion.class_lora import make_task as make_lora_task
from dinv.inversion.gan import GanParams, GanWorker, make_task
from dinv.inversion.image_embeddings import InvertTask, InvertWorker
from dinv.inversion.invert import (
    ImageEmbeddingsParams,
    heldout_visits,
    interval_means,
)
from dinv.inversion.joint_training import ClassLoraParams
from dinv.inversion.registry import METHODS

NUM_TIMED = 3  # micro-batches or steps of each kind that are timed
NUM_VISITS = 7  # of an inversion that is timed: four of them measure no held-out loss besides


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of one of its blocks.

    Attributes:
        seconds: of its work, without the start of its process.
        work: what there is to do: item -> how many.
        disk: bytes of its outputs.
        memory: the most at a time, while it was timed.
        note: why it cannot be estimated; empty: it can.
        look: seconds that `evaluate` takes per image for an arm's classifiers.
    """

    seconds: Range = NOTHING
    work: dict[str, int] = field(default_factory=dict)
    disk: int = 0
    memory: Memory = field(default_factory=Memory)
    note: str = ""
    look: Range = NOTHING


def with_memory(sample: Sample, measure: Callable[[], Cost]) -> Cost:
    """Measure, and watch memory meanwhile; what cannot be measured is named."""
    with peak_memory(sample.device) as memory:
        try:
            cost = measure()
        except UserError as error:
            return Cost(note=str(error))
    return replace(cost, memory=memory)


def download_cost(sample: Sample) -> Cost:
    """Decode, resize and write all images: training images at two sides, the others at one."""
    task, n = sample.task, sample.micro_batch
    sizes = [len(to_bytes(partial(write_parquet, images))) / len(images) for images in sample.both]
    sides = [sample.params.data.resolution, sample.params.model.resolution]

    def one_batch() -> None:
        for images in task.train.take_at(sides, sample.rows[:n]):
            to_bytes(partial(write_parquet, images))

    each = Range.of([timed(one_batch, sample.device) for _ in range(NUM_TIMED)]) * (1 / n)
    others = len(task.val) + len(task.test)
    share = sizes[0] / sum(sizes)  # of the time, that of the smaller side
    disk = sum(sizes) * sample.num_train + sizes[0] * others
    work = {"images": sample.num_train + others}
    return Cost(each * (sample.num_train + share * others), work, round(disk))


def invert_cost(params: MethodParams, sample: Sample) -> Cost:
    """One block of `invert`; a method that is not known here is named, not left out."""
    if isinstance(params, ClassLoraParams):
        return class_lora_cost(params, sample)
    if isinstance(params, ClassEmbeddingsParams):
        return class_embeddings_cost(params, sample)
    if isinstance(params, ImageEmbeddingsParams):
        return image_embeddings_cost(params, sample)
    if isinstance(params, GanParams):
        return gan_cost(params, sample)
    if params.method == "prompt_bank":
        return prompt_bank_cost(params, sample)
    return Cost(note=f"method {params.method} is not known to dinv estimate")


def image_embeddings_cost(params: ImageEmbeddingsParams, sample: Sample) -> Cost:
    """An embedding per image: what starts and ends it, and its visits."""
    few = params.model_copy(update={"num_visits": min(NUM_VISITS, params.num_visits)})
    worker = InvertWorker(lambda: sample.model, few, sample.micro_batch)
    one = timed(
        lambda: worker.compute(InvertTask.of(sample.both[1].take([0])), lambda n: None), sample.device
    )
    size = fitting_size(one, sample.micro_batch, 3 * SECONDS)
    clock = Clock(sample.device)
    worker.compute(InvertTask.of(sample.both[1].take(range(size))), clock.advance)
    total, visit = clock.total(), plain_visits(clock.steps, few.num_visits)
    ends = max(0.0, total - visit.median * few.num_visits)
    each = (visit * params.num_visits + Range(ends, ends, ends)) * (1 / size)
    n, disk = sample.num_train, embedding_bytes(params, sample.model.width)
    return Cost(each * n, {"image visits": n * params.num_visits}, round(n * disk))


def prompt_bank_cost(params: MethodParams, sample: Sample) -> Cost:
    """All of it: it is about class names, however many images there are."""
    place = Place(lambda: sample.model, [], sample.params.execution)
    folder = sample.folder / "prompts"
    learn = partial(METHODS["prompt_bank"].learn, params, sample.for_model, place, folder)
    seconds, disk = timed(learn, sample.device), sum(file.stat().st_size for file in folder.iterdir())
    return Cost(Range.of([seconds]), {"classes": len(sample.small.class_names)}, disk)


def gan_cost(params: GanParams, sample: Sample) -> Cost:
    """Steps of the GAN on the sample: a step costs the same whatever the number of images."""
    few, clock = params.model_copy(update={"num_steps": NUM_TIMED + 1}), Clock(sample.device)
    worker = GanWorker(few, sample.params.execution.device)
    content = worker.compute(make_task(few, sample.for_model, []), clock.advance)
    step = Range.of(clock.steps[1:])  # the first warms up
    return Cost(step * params.num_steps, {"steps": params.num_steps}, len(content))


def plain_visits(steps: list[float], num_visits: int) -> Range:
    """Seconds of visits, if possible not of the first nor of those that measure the held-out loss."""
    measured = set(heldout_visits(num_visits))
    plain = [seconds for visit, seconds in enumerate(steps, 1) if visit > 1 and visit not in measured]
    return Range.of(plain or steps)


def class_embeddings_cost(params: ClassEmbeddingsParams, sample: Sample) -> Cost:
    """An embedding per class: steps over batches of its images."""
    few = params.model_copy(update={"num_visits": min(NUM_VISITS, params.num_visits)})
    worker = ClassWorker(lambda: sample.model, few)
    images = sample.both[1]
    rows = [row for row, label in enumerate(images.labels) if label == images.labels[0]]
    task = ClassTask(images.images[rows], int(images.labels[0]), images.class_names[int(images.labels[0])])
    worker.compute(task, lambda n: None)
    clock = Clock(sample.device)
    worker.compute(task, clock.advance)
    total, step = clock.total(), plain_visits(clock.steps, few.num_visits)
    ends = max(0.0, total - step.median * few.num_visits)
    num_classes = len(set(sample.task.train.raw.labels.tolist()))
    seconds = (step * params.num_visits + Range(ends, ends, ends)) * num_classes
    work = {"image visits": num_classes * params.num_visits * params.batch_size}
    return Cost(seconds, work, round(num_classes * embedding_bytes(params, sample.model.width)))


def class_lora_cost(params: ClassLoraParams, sample: Sample) -> Cost:
    """Steps over images of all classes, and what starts and ends them: encoding, losses of every class."""
    few = params.model_copy(update={"num_visits": min(NUM_VISITS, params.num_visits)})
    task, worker = make_lora_task(few, sample.for_model, []), ClassLoraWorker(lambda: sample.model, few)
    clock = Clock(sample.device)
    content = worker.compute(task, clock.advance)
    total, step = clock.total(), plain_visits(clock.steps, few.num_visits)
    ends = max(0.0, total - step.median * few.num_visits)
    work = {"image visits": params.num_visits * params.batch_size}
    return Cost(step * params.num_visits + Range(ends, ends, ends), work, len(content))


def embedding_bytes(params: ImageEmbeddingsParams, width: int) -> float:
    """What one embedding, its label and its losses take on the disk."""
    points = len(interval_means(torch.zeros(params.num_visits, 1))[0]) + len(
        heldout_visits(params.num_visits)
    )
    item = getattr(torch, params.storage_dtype).itemsize
    return (params.num_tokens * width + points) * item + 8 + 16
