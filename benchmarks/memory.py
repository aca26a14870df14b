"""Peak memory: of invert and generate against the number of images, and of the images in training.

python benchmarks/memory.py
python benchmarks/memory.py training
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import machine

from dinv.execution.parts import PartStore, to_bytes
from dinv.execution.run import run_parts
from dinv.images.image_set import IMAGES, ROWS_PER_FILE, ImageSet, ImageSetReader, load_image_set, save_chunks
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


def image_chunks(n: int, channels: int = 1):
    for start in range(0, n, ROWS_PER_FILE):
        size = min(ROWS_PER_FILE, n - start)
        pixels = np.random.default_rng(start).integers(0, 256, (size, SIDE, SIDE, channels), np.uint8)
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


def in_memory(folder: Path):
    images = load_image_set(folder)
    return images, images.tensor()


def mapped(folder: Path):
    images = ImageSetReader(folder).mapped()
    return images, images.tensor()


OPEN = {"in memory": in_memory, "mapped": mapped}
TRAINING_IMAGES, BATCHES = 60_000, 1_000


def status(field: str) -> float:
    """A memory figure of this process in MB, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def open_and_read(how: str, folder: Path) -> None:
    """Print what opening a set and reading random batches add; private is what the kernel cannot drop."""
    before, private = status("VmRSS"), status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = time.perf_counter()
    kept, pixels = OPEN[how](folder)
    seconds, opened = time.perf_counter() - start, status("VmHWM") - before
    for _ in range(BATCHES):
        pixels[torch.randint(0, len(kept), (64,))].float()
    print(opened, status("VmHWM") - before, status("RssAnon") - private, seconds)


def training(n: int = TRAINING_IMAGES, runs: int = 3) -> None:
    """Both ways in turn, a process each."""
    found: dict[str, list[list[float]]] = {how: [] for how in OPEN}
    with tempfile.TemporaryDirectory() as folder:
        save_chunks(image_chunks(n, channels=3), Path(folder) / "set")
        for _ in range(runs):
            for how, rows in found.items():
                command = [sys.executable, __file__, how, f"{folder}/set"]
                env = {**os.environ, "PYTHONPATH": ".", "DINV_SCRATCH": folder}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
                rows.append([float(x) for x in done.stdout.split()])
    print(f"{n} images of {SIDE} px RGB, {n * SIDE**2 * 3 / 2**20:.0f} MB of pixels; n = {runs}")
    print(machine(torch.device("cpu")), *(f"{p} {version(p)}" for p in ("numpy", "pyarrow")), sep=", ")
    medians = {
        how: [statistics.median(column) for column in zip(*rows, strict=True)] for how, rows in found.items()
    }
    names = ("peak of opening, MB", "peak of opening and reading, MB", "private at the end, MB", "opening, s")
    for i, name in enumerate(names):
        slow, fast = medians["in memory"][i], medians["mapped"][i]
        print(f"{name}: in memory {slow:.1f}, mapped {fast:.1f}, ratio {slow / fast:.1f}")


def main() -> None:
    for n in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(n), folder]
            subprocess.run(
                command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": "."}
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["training"]:
        training()
    elif len(sys.argv) == 3 and sys.argv[1] in OPEN:
        open_and_read(sys.argv[1], Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        work(int(sys.argv[1]), Path(sys.argv[2]))
    else:
        main()
