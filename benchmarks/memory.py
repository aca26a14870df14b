"""Peak memory of the invert and generate stages against the number of images, with a stub for the model.

python benchmarks/memory.py
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from dinv.execution.parts import PartStore, to_bytes
from dinv.execution.run import run_parts
from dinv.images.image_set import IMAGES, ROWS_PER_FILE, ImageSet, ImageSetReader, save_chunks
from dinv.inversion.bank import (
    EMBEDDINGS,
    BankReader,
    EmbeddingBank,
    bank_statistics,
    load_part,
    part_paths,
    save_bank,
)
from dinv.params import load_params
from dinv.strategies.diffusion_inversion import DiffusionInversion
from stages.generate import generation_plan
from stages.invert import make_plan

SIDE, VISITS = 32, 150


def image_chunks(n: int):
    for start in range(0, n, ROWS_PER_FILE):
        size = min(ROWS_PER_FILE, n - start)
        pixels = np.random.default_rng(start).integers(0, 256, (size, SIDE, SIDE, 1), np.uint8)
        ids = [f"train/{i:07d}" for i in range(start, start + size)]
        yield ImageSet(pixels, np.arange(size, dtype=np.int64) % 10, ids, [str(i) for i in range(10)])


class StubInverter:
    def compute(self, task, advance) -> bytes:
        n = len(task.ids)
        c, train, heldout = torch.randn(n, 5, 128), torch.zeros(VISITS, n), torch.zeros(3, n)
        bank = EmbeddingBank(c, torch.from_numpy(task.labels), task.ids, train, torch.arange(3), heldout)
        return to_bytes(lambda path: save_bank(bank, path))


class StubRenderer:
    def compute(self, task, advance) -> bytes:
        return task.table.parquet(
            torch.randint(0, 256, (len(task.table.ids), SIDE, SIDE, 1), dtype=torch.uint8)
        )


def work(n: int, folder: Path) -> None:
    """Both stages for n images, one variant each; prints the peak resident memory in MB."""
    params = load_params()
    save_chunks(image_chunks(n), folder / "real")
    images = ImageSetReader(folder / "real")
    plan, store = make_plan(images, ["memory"], VISITS), PartStore("invert", folder)
    run_parts(plan, store, EMBEDDINGS, StubInverter, params.execution, folder / "embeddings")
    peak("invert", n)
    statistics = bank_statistics(map(load_part, part_paths(folder / "embeddings")), 10)
    settings = params.generate.model_copy(update={"num_images_per_embedding": 1})
    strategy = DiffusionInversion(BankReader(folder / "embeddings"), statistics, settings)
    plan, store = generation_plan(strategy, images, ["memory"]), PartStore("generate", folder)
    run_parts(plan, store, IMAGES, StubRenderer, params.execution, folder / "generated")
    peak("invert, then generate", n)


def peak(stage: str, n: int) -> None:
    print(
        f"{n} images, {stage}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", flush=True
    )


def main() -> None:
    for n in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(n), folder]
            subprocess.run(
                command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "."}
            )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
