"""What each stage costs: a little of its own work is done and timed, and counted up to the whole.

Work is done by the workers and learners that the stages use. The first call warms up and is not counted.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinv.errors import UserError
from dinv.estimate.measure import NOTHING, Clock, Memory, Range, fitting_size, peak_memory, timed
from dinv.estimate.sample import SECONDS, Sample
from dinv.execution.parts import to_bytes
from dinv.images.image_set import write_parquet
from dinv.inversion.bank import EmbeddingBank, bank_statistics, save_bank, save_statistics
from dinv.inversion.base import MethodParams, Place
from dinv.inversion.class_embeddings import ClassEmbeddingsParams, ClassTask, ClassWorker
from dinv.inversion.gan import GanParams, GanWorker, make_task
from dinv.inversion.image_embeddings import InvertTask, InvertWorker
from dinv.inversion.invert import (
    ImageEmbeddingsParams,
    ImageStream,
    heldout_visits,
    initial_embeddings,
    interval_means,
)
from dinv.inversion.registry import METHODS
from dinv.params import LEARNED
from dinv.strategies.base import Material, Strategy, StrategyParams
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.worker import PART_SIZE, Form, RenderTask, RenderWorker

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
    if isinstance(params, ClassEmbeddingsParams):
        return class_embeddings_cost(params, sample)
    if isinstance(params, ImageEmbeddingsParams):
        return image_embeddings_cost(params, sample)
    if isinstance(params, GanParams):
        return gan_cost(params, sample)
    if params.method == "prompt_bank":
        place = Place(lambda: sample.model, [], sample.params.execution)
        learn = partial(
            METHODS["prompt_bank"].learn, params, sample.for_model, place, sample.folder / "prompts"
        )
        return Cost(Range.of([timed(learn, sample.device)]), {"classes": len(sample.small.class_names)})
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


def embedding_bytes(params: ImageEmbeddingsParams, width: int) -> float:
    """What one embedding, its label and its losses take on the disk."""
    points = len(interval_means(torch.zeros(params.num_visits, 1))[0]) + len(
        heldout_visits(params.num_visits)
    )
    item = getattr(torch, params.storage_dtype).itemsize
    return (params.num_tokens * width + points) * item + 8 + 16


def generate_cost(params: StrategyParams, sample: Sample) -> Cost:
    """One block of `generate`: its strategy on the sample, rendered by its own worker."""
    if params.strategy == "retrieval":
        return Cost(note="strategy retrieval searches a pool; what that costs depends on the pool")
    if params.strategy in ("import_folder", "gan_inversion"):
        return Cost(note=f"strategy {params.strategy} is not known to dinv estimate")
    strategy = STRATEGIES[params.strategy](params, material(params, sample))
    of_images = params.strategy != "import_folder" and not hasattr(params, "num_images_per_class")
    num_images = round(len(strategy) * (sample.num_train / len(sample.rows) if of_images else 1))
    passes = Passes(sample.model if strategy.renderer().uses_model else None)
    open_seconds = timed(lambda: strategy.renderer().open(lambda: sample.model), sample.device)
    render = partial(rendered, strategy, sample)
    alone, most = render(1, 0), min(sample.micro_batch, len(strategy))  # the first call warms up
    one = timed(lambda: render(1, 0), sample.device)
    size = max(min(2, most), fitting_size(one, most, SECONDS))  # of one image a part's head is not told apart
    parts, seconds = [], []
    with passes:
        for i in range(NUM_TIMED):
            clock = Clock(sample.device)
            parts.append(render(size, i))
            seconds.append(clock.total() / size)
    num_parts = math.ceil(num_images / PART_SIZE)
    opened, disk = num_parts * open_seconds, part_bytes(len(alone), parts, size, num_images, num_parts)
    work = {"images": num_images, "UNet passes": round(passes.count / (NUM_TIMED * size) * num_images)}
    return Cost(Range.of(seconds) * num_images + Range(opened, opened, opened), work, disk)


def part_bytes(alone: int, parts: list[bytes], size: int, num_images: int, num_parts: int) -> int:
    """Bytes of all parts, from one of a single image (`alone`) and some of `size`: each has a head."""
    mean = sum(map(len, parts)) / len(parts)
    each = (mean - alone) / (size - 1) if size > 1 else mean
    return round(each * num_images + max(0.0, mean - each * size) * num_parts)


def rendered(strategy: Strategy, sample: Sample, size: int, batch: int) -> bytes:
    """`size` images of a strategy as the bytes of a part, the `batch`-th so many."""
    first = batch * size % max(1, len(strategy) - size + 1)
    draws = strategy.draws(range(first, first + size))
    side, channels = sample.params.data.resolution, sample.small.images.shape[3]
    form = Form((side, side, channels), sample.small.class_names)
    task = RenderTask(strategy.renderer(), strategy.inputs(draws), draws, form)
    return RenderWorker(lambda: sample.model, size).compute(task, lambda n: None)


class Passes:
    """Counts passes of one image through the model's UNet while it is entered."""

    def __init__(self, model: Any):
        self.model, self.count = model, 0

    def __enter__(self) -> None:
        if self.model is not None:
            self._hook = self.model.unet.register_forward_pre_hook(self._seen)

    def __exit__(self, *error: object) -> None:
        if self.model is not None:
            self._hook.remove()

    def _seen(self, module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.count += len(args[0])


def material(params: StrategyParams, sample: Sample) -> Material:
    """What a strategy is made with: the sample, and what an inversion of it has before it learns."""
    folder = sample.folder / "train_model"
    real = sample.for_model
    if params.input.startswith(LEARNED):
        folder = sample.folder / params.input
        learned = sample.params.invert[params.input.removeprefix(LEARNED)]
        if isinstance(learned, ImageEmbeddingsParams):
            save_unlearned(learned, sample, folder)
        else:
            place = Place(lambda: sample.model, [], sample.params.execution)
            if isinstance(learned, GanParams):
                learned = learned.model_copy(update={"num_steps": 1})  # images cost the same then
            elif learned.method != "prompt_bank":
                raise UserError(f"its input is learned by {learned.method}, not known to dinv estimate")
            METHODS[learned.method].learn(learned, real, place, folder)
    return Material(real, folder, lambda: sample.model)


def save_unlearned(params: ImageEmbeddingsParams, sample: Sample, folder: Path) -> None:
    """A bank of the sample's images, or of its classes, with the embeddings that learning begins with."""
    images = sample.both[1]
    rows, ids = np.arange(len(images)), images.ids
    if isinstance(params, ClassEmbeddingsParams):
        _, rows = np.unique(images.labels, return_index=True)
        ids = [images.class_names[k] for k in images.labels[rows].tolist()]
    c = initial_embeddings(sample.model, [ImageStream(params, i) for i in ids], params).cpu()
    none, labels = torch.zeros(1, len(rows)), torch.from_numpy(images.labels[rows])
    bank = EmbeddingBank(c, labels, ids, torch.tensor([1]), none, torch.tensor([0]), none.clone())
    folder.mkdir(parents=True, exist_ok=True)
    save_bank(bank, folder / "part-00000.safetensors")
    save_statistics(bank_statistics([bank], len(images.class_names)), folder)
