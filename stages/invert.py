"""Learn an embedding for every training image.

python -m stages.invert
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dinv.diffusion.params import ModelParams
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan
from dinv.execution.run import run_parts
from dinv.images.image_set import ImageSetReader
from dinv.inversion.bank import EMBEDDINGS, bank_statistics, load_part, part_paths, save_statistics
from dinv.inversion.params import InvertParams
from dinv.inversion.worker import InvertTask, InvertWorker
from stages.frozen_model import FrozenModel
from stages.runner import run

PART_SIZE = 100  # images; a constant of the format, not a setting
OUTPUT = Path("data/embeddings")


def main(model: ModelParams, invert: InvertParams, execution: ExecutionParams, code_digest: str) -> None:
    images = ImageSetReader(Path("data/real/train"))
    frozen = FrozenModel(model, execution)
    key = [code_digest, frozen.digest, model.dtype, model.resolution, invert.model_dump()]
    worker = partial(InvertWorker, frozen.opener, invert, execution.micro_batch)
    plan = make_plan(images, key, invert.num_visits)
    run_parts(plan, PartStore("invert"), EMBEDDINGS, worker, execution, OUTPUT)
    statistics = bank_statistics(map(load_part, part_paths(OUTPUT)), len(images.class_names))
    save_statistics(statistics, OUTPUT / "statistics.safetensors")


def make_plan(images: ImageSetReader, key: list[object], num_visits: int) -> Plan:
    """One embedding per image; its digest covers the image's pixels, label and id."""

    def digests(rows: Sequence[int]) -> list[str]:
        return images.take(rows).digests(key)

    def task(rows: Sequence[int]) -> InvertTask:
        return InvertTask.of(images.take(rows))

    return Plan("invert part", len(images), PART_SIZE, digests, task, "visit", num_visits)


if __name__ == "__main__":
    run("invert", main)
