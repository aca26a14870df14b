"""Peak memory: of invert and generate against the number of images, and of the images in training.

python benchmarks/memory.py
python benchmarks/memory.py training
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.parts import PartStore, to_bytes
from dinv.execution.run import run_parts
from dinv.files import part_paths
from dinv.images.image_set import (
    IMAGES,
    ROWS_PER_FILE,
    ImageSet,
    ImageSetReader,
    load_image_set,
    save_chunks,
    write_parquet,
)
from dinv.inversion.bank import (
    EMBEDDINGS,
    EmbeddingBank,
    bank_statistics,
    load_part,
    save_bank,
    save_statistics,
)
from dinv.inversion.image_embeddings import InvertTask, make_plan
from dinv.params import load_params
from dinv.strategies.base import Material
from dinv.strategies.diffusion_inversion import DiffusionInversion, DiffusionInversionParams
from dinv.strategies.worker import Form, RenderTask, generation_plan

SIDE, VISITS = 32, 150
SIZES = (1_000, 10_000, 100_000)
Advance = Callable[[int], None]


def image_chunks(n: int, channels: int = 1) -> Iterator[ImageSet]:
    for start in range(0, n, ROWS_PER_FILE):
        size = min(ROWS_PER_FILE, n - start)
        pixels = np.random.default_rng(start).integers(0, 256, (size, SIDE, SIDE, channels), np.uint8)
        ids = [f"train/{i:07d}" for i in range(start, start + size)]
        yield ImageSet(pixels, np.arange(size, dtype=np.int64) % 10, ids, [str(i) for i in range(10)])


class StubInverter:
    def compute(self, task: InvertTask, advance: Advance) -> bytes:
        n = len(task.ids)
        points = torch.arange(40)
        bank = EmbeddingBank(
            torch.randn(n, 5, 128),
            torch.from_numpy(task.labels),
            task.ids,
            points,
            torch.zeros(40, n),
            points[:3].clone(),
            torch.zeros(3, n),
        )
        return to_bytes(lambda path: save_bank(bank, path))


class StubRenderer:
    def compute(self, task: RenderTask, advance: Advance) -> bytes:
        images = torch.randint(0, 256, (len(task.draws), SIDE, SIDE, 1), dtype=torch.uint8)
        return to_bytes(partial(write_parquet, task.part(images)))


def no_model() -> LatentDiffusion:
    raise AssertionError("the stubs need no model")


def stages(n: int, folder: Path) -> None:
    """Both stages for n images, one variant each; prints the peak resident memory in MB."""
    params = load_params()
    save_chunks(image_chunks(n), folder / "real")
    images, learned = ImageSetReader(folder / "real"), folder / "learned"
    plan, store = make_plan(images, ["memory"], VISITS), PartStore("invert", folder)
    run_parts(plan, store, EMBEDDINGS, StubInverter, params.execution, learned)
    save_statistics(
        bank_statistics(map(load_part, part_paths(learned, EMBEDDINGS.suffix, "embeddings")), 10), learned
    )
    peak("invert", n)
    block = next(b for b in params.generate.values() if isinstance(b, DiffusionInversionParams))
    settings = block.model_copy(update={"num_images_per_embedding": 1, "unconditional": "mean"})
    strategy: Any = DiffusionInversion(settings, Material(images, learned, no_model))
    plan = generation_plan(strategy, Form(images.shape, images.class_names), ["memory"])
    store = PartStore("generate", folder)
    run_parts(plan, store, IMAGES, StubRenderer, params.execution, folder / "generated")
    peak("invert, then generate", n)


def peak(stage: str, n: int) -> None:
    print(
        f"{n} images, {stage}: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB", flush=True
    )


def in_memory(folder: Path) -> tuple[Any, torch.Tensor]:
    images = load_image_set(folder)
    return images, images.tensor()


def mapped(folder: Path) -> tuple[Any, torch.Tensor]:
    images = ImageSetReader(folder).mapped()
    return images, images.tensor()


OPEN: dict[str, Callable[[Path], tuple[Any, torch.Tensor]]] = {"in-memory": in_memory, "mapped": mapped}
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


def training(n: int, runs: int) -> None:
    """Both ways in turn, a process each."""
    found: dict[str, list[list[float]]] = {how: [] for how in OPEN}
    with tempfile.TemporaryDirectory() as folder:
        save_chunks(image_chunks(n, channels=3), Path(folder) / "set")
        for _ in range(runs):
            for how, rows in found.items():
                rows.append([float(x) for x in in_a_process(how, f"{folder}/set", folder).split()])
    print(f"{n} images of {SIDE} px RGB, {n * SIDE**2 * 3 / 2**20:.0f} MB of pixels; n = {runs}")
    print(machine(torch.device("cpu")), *(f"{p} {version(p)}" for p in ("numpy", "pyarrow")), sep=", ")
    medians = {
        how: [statistics.median(column) for column in zip(*rows, strict=True)] for how, rows in found.items()
    }
    names = ("peak of opening, MB", "peak of opening and reading, MB", "private at the end, MB", "opening, s")
    for i, name in enumerate(names):
        slow, fast = medians["in-memory"][i], medians["mapped"][i]
        ratio = f", ratio {slow / fast:.1f}" if fast else ""
        print(f"{name}: in memory {slow:.1f}, mapped {fast:.1f}{ratio}")


def in_a_process(part: str, argument: str, folder: str) -> str:
    """Run one measurement by itself, so that the peak is its own; returns what it prints."""
    command = [sys.executable, __file__, "--part", part, argument, folder]
    env = {**os.environ, "PYTHONPATH": ".", "DINV_SCRATCH": folder}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
    return done.stdout.decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["stages", "training"], default="stages")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="as little as possible: does it run?")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.part:
        part, argument, folder = args.part
        return (
            stages(int(argument), Path(folder)) if part == "stages" else open_and_read(part, Path(argument))
        )
    if args.what == "training":
        return training(*((200, 1) if args.tiny else (TRAINING_IMAGES, args.runs)))
    for n in (50,) if args.tiny else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            print(in_a_process("stages", str(n), folder), end="", flush=True)


if __name__ == "__main__":
    main()
