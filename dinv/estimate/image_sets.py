"""What image sets cost: some of each is made by the strategy itself, rendered by the stage's own worker."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinv.diffusion import lora
from dinv.errors import UserError
from dinv.estimate.measure import NOTHING, Clock, Range, fitting_size, timed
from dinv.estimate.sample import SECONDS, Sample
from dinv.estimate.stages import NUM_TIMED, Cost
from dinv.execution.parts import to_bytes
from dinv.images.image_set import write_parquet
from dinv.images.resize import to_square
from dinv.inversion.bank import EmbeddingBank, bank_statistics, save_bank, save_statistics
from dinv.inversion.base import Place
from dinv.inversion.class_embeddings import ClassEmbeddingsParams
from dinv.inversion.gan import GanParams
from dinv.inversion.invert import ImageEmbeddingsParams, ImageStream, initial_embeddings
from dinv.inversion.joint_training import ClassLoraParams
from dinv.inversion.registry import METHODS
from dinv.params import LEARNED
from dinv.sources.image_folder import SUFFIXES, read_picture
from dinv.strategies.base import Material, Strategy, StrategyParams
from dinv.strategies.gan_inversion import GanInversion, GanInversionParams
from dinv.strategies.import_folder import ImportFolderParams
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.worker import PART_SIZE, Form, RenderTask, RenderWorker


def generate_cost(params: StrategyParams, sample: Sample) -> Cost:
    """One block of `generate`: its strategy on the sample, rendered by its own worker."""
    if params.strategy in ("retrieval", "pool_sample"):
        return Cost(note=f"strategy {params.strategy} reads a pool; what that costs depends on the pool")
    if isinstance(params, ImportFolderParams):
        return import_cost(params, sample)
    first = NOTHING
    if isinstance(params, GanInversionParams):
        first, params = latents_cost(params, sample)
    strategy = STRATEGIES[params.strategy](params, material(params, sample))
    share = len(sample.rows) / sample.num_train if grows(params, sample) else 1
    num_images = round(len(strategy) / share)
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
    return Cost(first + Range.of(seconds) * num_images + Range(opened, opened, opened), work, disk)


def grows(params: StrategyParams, sample: Sample) -> bool:
    """Whether there are more images where more are labelled: not of classes, nor of their embeddings."""
    learned = sample.params.invert.get(params.input.removeprefix(LEARNED))
    of_embeddings = hasattr(params, "num_images_per_embedding") and isinstance(learned, ClassEmbeddingsParams)
    return not (of_embeddings or hasattr(params, "num_images_per_class"))


def latents_cost(params: GanInversionParams, sample: Sample) -> tuple[Range, GanInversionParams]:
    """Finding the latents of all images: its seconds, and settings that find them in one step.

    The sample is inverted with few steps and with some more: the difference is that of the steps.
    """
    learned = material(params, sample)

    def seconds(num_steps: int) -> float:
        few = params.model_copy(update={"num_inversion_steps": num_steps})
        return timed(lambda: GanInversion(few, learned), sample.device)

    seconds(1)  # warms up
    short, long = seconds(2), seconds(2 + NUM_TIMED)
    step = max(0.0, long - short) / NUM_TIMED
    whole = max(short, short + step * (params.num_inversion_steps - 2)) * sample.num_train / len(sample.rows)
    return Range(whole, whole, whole), params.model_copy(update={"num_inversion_steps": 1})


def import_cost(params: ImportFolderParams, sample: Sample) -> Cost:
    """Read, resize and write every image of the folder; twice read, if duplicates are looked for."""
    folder = Path(params.input)
    if not folder.is_dir():
        raise UserError(f"import_folder: input = {params.input!r}: no such folder")
    files = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"import_folder: input = {params.input!r}: no image; put some there")
    mode, times = sample.params.data.mode, 1 if params.max_duplicate_bits is None else 2
    few = files[: sample.micro_batch]

    def read() -> None:
        for file in few:
            to_square(read_picture(file), sample.params.data.resolution, params.resize, mode)

    looks = Range.of([timed(read, sample.device) for _ in range(NUM_TIMED)]) * (times / len(few))
    write = Range.of([timed(lambda: to_bytes(partial(write_parquet, sample.small)), sample.device)])
    n, disk = len(files), len(to_bytes(partial(write_parquet, sample.small))) / len(sample.small)
    return Cost(looks * n + write * (n / len(sample.small)), {"images": n}, round(disk * n))


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

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passes":
        """A copy of the UNet, with an adapter, is counted with it."""
        return self

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
    if isinstance(params, ClassLoraParams):
        adapted = lora.with_new_adapter(sample.model, params.rank, params.alpha, params.seed)
        lora.save_adapter(lora.adapter_weights(adapted), params.rank, params.alpha, folder / lora.FILE)
