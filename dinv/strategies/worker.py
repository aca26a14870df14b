"""What is the same for every strategy: plans of parts, each image's digest, the worker that renders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from dinv.execution.memory import FittingBatch
from dinv.execution.parts import Plan, to_bytes
from dinv.files import bytes_digest, digest_of
from dinv.images.image_set import ImageSet, batches, write_parquet
from dinv.images.resize import convert_batch
from dinv.strategies.base import Draw, Inputs, OpenModel, Renderer, Strategy

PART_SIZE = 200  # images; a constant of the format, not a setting


@dataclass(frozen=True)
class Form:
    """What generated images look like to a classifier: (H, W, C) and class names."""

    shape: tuple[int, int, int]
    class_names: list[str]


@dataclass(frozen=True)
class RenderTask:
    """Images to make: inputs, a row per draw, and what else goes into the image set."""

    renderer: Renderer
    inputs: Inputs
    draws: list[Draw]
    form: Form
    columns: Mapping[str, Any] = field(default_factory=dict)

    def part(self, images: torch.Tensor) -> ImageSet:
        """The image set of rendered images, uint8 [B, H', W', C']."""
        pixels = convert_batch(images.numpy(), self.form.shape[0], self.form.shape[2])
        labels = np.asarray([d.label for d in self.draws], np.int64)
        provenance: dict[str, list[Any]] = {"source_id": [d.source_id for d in self.draws]}
        provenance |= {name: [d.facts[name] for d in self.draws] for name in self.draws[0].facts}
        provenance |= {name: [value] * len(self.draws) for name, value in self.columns.items()}
        ids = [d.id for d in self.draws]
        return ImageSet(pixels, labels, ids, self.form.class_names, provenance, self._probabilities())

    def _probabilities(self) -> np.ndarray | None:
        if self.draws[0].probabilities is None:
            return None
        return np.asarray([d.probabilities for d in self.draws], np.float32)


class RenderWorker:
    """RenderTask -> bytes of an image set part."""

    def __init__(self, open_model: OpenModel, micro_batch: int):
        self.open_model, self.batch = open_model, FittingBatch(micro_batch)

    def compute(self, task: RenderTask, advance: Callable[[int], None]) -> bytes:
        """Render every image."""
        render = task.renderer.open(self.open_model)

        def images(size: int, advance: Callable[[int], None]) -> torch.Tensor:
            done = []
            for batch in micro_batches(task.inputs, size):
                done.append(render(batch))
                advance(len(done[-1]))
            return torch.cat(done)

        part = task.part(self.batch.run(images, advance))
        return to_bytes(lambda path: write_parquet(part, path))


def micro_batches(inputs: Inputs, size: int) -> list[Inputs]:
    """The same rows, at most `size` together."""
    n = len(next(iter(inputs.values())))
    return [{k: v[i : i + size] for k, v in inputs.items()} for i in range(0, n, size)]


def image_digests(strategy: Strategy, draws: Sequence[Draw], key: Sequence[object]) -> list[str]:
    """One digest per image, of all that determines it: `key`, renderer, draw and row of inputs."""
    renderer, inputs = strategy.renderer(), strategy.inputs(draws)
    common = digest_of([*key, type(renderer).__name__, asdict(renderer)])  # type: ignore[call-overload]
    rows = {name: tensor.cpu().contiguous().numpy() for name, tensor in inputs.items()}
    return [
        digest_of([common, asdict(draw), {name: bytes_digest(x[i].tobytes()) for name, x in rows.items()}])
        for i, draw in enumerate(draws)
    ]


def generation_plan(strategy: Strategy, form: Form, key: Sequence[object]) -> Plan:
    """Every image of a strategy."""

    def digests(indices: Sequence[int]) -> list[str]:
        return image_digests(strategy, strategy.draws(indices), key)

    def task(indices: Sequence[int]) -> RenderTask:
        draws = strategy.draws(indices)
        return RenderTask(strategy.renderer(), strategy.inputs(draws), draws, form)

    return Plan("generate part", len(strategy), PART_SIZE, digests, task)


def preview_plan(
    previews: Sequence[tuple[str, Strategy]], classes: Sequence[int], form: Form, key: Sequence[object]
) -> Plan:
    """One part per row of the grid: the first image of each of the given classes."""
    found = [first_of_each_class(strategy, classes) for _, strategy in previews]
    # A method may leave a class out; every row shows the classes that all have.
    common = [k for k in classes if all(k in first for first in found)]
    width = len(common)

    def of(rows: Sequence[int]) -> tuple[str, Strategy, list[Draw]]:
        label, strategy = previews[rows[0] // width]
        return label, strategy, [found[row // width][common[row % width]] for row in rows]

    def digests(rows: Sequence[int]) -> list[str]:
        label, strategy, draws = of(rows)
        return image_digests(strategy, draws, [*key, label])

    def task(rows: Sequence[int]) -> RenderTask:
        label, strategy, draws = of(rows)
        return RenderTask(strategy.renderer(), strategy.inputs(draws), draws, form, {"row": label})

    return Plan("preview", len(previews) * width, width, digests, task)


def first_of_each_class(strategy: Strategy, classes: Sequence[int]) -> dict[int, Draw]:
    """Class -> the first draw of it, as far as there is one."""
    first: dict[int, Draw] = {}
    for rows in batches(len(strategy), PART_SIZE):
        for draw in strategy.draws(range(len(strategy))[rows]):
            first.setdefault(draw.label, draw)
        if first.keys() >= set(classes):
            break
    return first
