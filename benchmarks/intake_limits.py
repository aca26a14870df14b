"""What the limits of `dinv init` and `dinv check` rest on, measured on the bundled images.

Writes two tables: what each shipped autoencoder leaves of each bundled task, and which pictures count as
single-coloured, made ones and bundled ones.

    python benchmarks/intake_limits.py
"""

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dinv.intake.shipped import KNOWN_DB, Shipped, fidelity, shipped_models
from dinv.intake.survey import LOW_CONTRAST, contrast, evenness
from dinv.intake.thresholds import Thresholds
from dinv.metrics.tables import markdown, write_text
from dinv.params import read_yaml
from dinv.sources.params import DataParams
from dinv.sources.task import Split, load_task

OUTPUT = Path("metrics/benchmarks")
SIDES = (32, 64, 200)  # pixels of made pictures
LOSSY = [("JPEG", quality) for quality in (30, 75)] + [("WEBP", quality) for quality in (10, 30, 50, 80)]
TASKS = ("fashion", "satellite", "cells")
Pictures = Mapping[str, Sequence[Image.Image]]


def test_split(task: str, mode: str | None = None) -> Split:
    """Test images of a bundled task, in grey or in colour if `mode` says so."""
    raw = read_yaml(Path("params.yaml"))["data"] | read_yaml(Path(f"presets/{task}.yaml"))["data"]
    return load_task(DataParams(**raw | ({} if mode is None else {"mode": mode}))).test


def spaced(split: Split, n: int) -> list[int]:
    """n rows from the first to the last: of all classes, in whatever order they lie."""
    return np.linspace(0, len(split) - 1, min(n, len(split))).round().astype(int).tolist()


def left_of(model: Shipped, task: str, n: int) -> float:
    """PSNR in dB of n test images after the model's autoencoder, as `dinv init` measures it."""
    split = test_split(task, model.mode)
    return fidelity(model, split.take(spaced(split, n)).images)


def autoencoders(n: int) -> str:
    """A row per model, a column per task; a grey model sees pictures in grey."""
    rows = []
    for model in shipped_models():
        found = {task: f"{left_of(model, task, n):.1f}" for task in TASKS}
        rows.append({"autoencoder of": Path(model.path).name, **found})
    return markdown(pd.DataFrame(rows))


def flat(n: int, side: int, form: str, quality: int) -> Iterator[Image.Image]:
    """Pictures of one random colour each, saved and read again."""
    for colour in np.random.default_rng(0).integers(0, 256, (n, 3)).tolist():
        file = io.BytesIO()
        Image.new("RGB", (side, side), tuple(colour)).save(file, form, quality=quality)
        yield Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def row_of(name: str, pictures: Sequence[Image.Image]) -> dict[str, str]:
    """How many count as single-coloured by either limit, and how near others come."""
    limits = Thresholds()
    spread = np.array([contrast(np.asarray(p.convert("RGB").resize((32, 32)))[None])[0] for p in pictures])
    even = np.array([evenness(p) if c < LOW_CONTRAST else 0.0 for p, c in zip(pictures, spread, strict=True)])
    plain, besides = spread < limits.contrast, even >= limits.even
    return {
        "pictures": name,
        "number": str(len(pictures)),
        "by contrast": f"{100 * plain.mean():.1f} %",
        "by contrast or evenness": f"{100 * (plain | besides).mean():.1f} %",
        "contrast": f"{spread.min():.2f} to {spread.max():.2f}",
        "evenness": f"{even.min():.2f} to {even.max():.2f}",
    }


def single_colours(tasks: Pictures, n: int) -> str:
    """A row for each kind of made pictures, and for each task."""
    rows = [
        row_of(f"one colour, {form} {quality}", [p for side in SIDES for p in flat(n, side, form, quality)])
        for form, quality in LOSSY
    ]
    return markdown(pd.DataFrame([*rows, *(row_of(name, pictures) for name, pictures in tasks.items())]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--tiny", action="store_true", help="as little as possible: does it run?")
    args = parser.parse_args(arguments)
    num_images, num_seen, num_made = (4, 2, 1) if args.tiny else (2000, 200, 60)
    splits = {task: test_split(task) for task in TASKS}
    tasks = {t: [split.raw.read(row) for row in spaced(split, num_images)] for t, split in splits.items()}
    print(f"known: at least {KNOWN_DB:g} dB; single-coloured: contrast below {Thresholds().contrast:g}, or")
    print(f"below {LOW_CONTRAST:g} and evenness of at least {Thresholds().even:g}")
    tables = {"autoencoders": autoencoders(num_seen), "single_colours": single_colours(tasks, num_made)}
    for name, text in tables.items():
        write_text(args.output / f"{name}.md", text)
        print(f"\n{text}")


if __name__ == "__main__":
    main()
