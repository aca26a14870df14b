"""From a folder of images to a verdict: a newcomer's three commands, one after the other, with their times.

Bundled satellite tiles are laid out as a folder per class in a temporary clone of this project. Minutes are
what a user waits for, if the machine does nothing else; CPU minutes are what there was to do.

    python benchmarks/verdict.py
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import machine

from dinv.metrics.tables import markdown, write_text
from dinv.params import read_yaml
from dinv.sources.params import DataParams
from dinv.sources.task import load_task

ROOT = Path(__file__).parents[1]
OUTPUT, IMAGES = Path("metrics/benchmarks/verdict.md"), "my_images"
QUIET = {"DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Step:
    """A command, what it took, and what it printed."""

    command: str
    seconds: float
    cpu_seconds: float
    out: str


def lay_out(folder: Path, num_classes: int, per_class: int) -> int:
    """Training tiles as folder/CLASS/0.png, ...; returns how many there are."""
    raw = read_yaml(ROOT / "params.yaml")["data"] | read_yaml(ROOT / "presets/satellite.yaml")["data"]
    data = {**raw, "root": str(ROOT / raw["root"]), "num_per_class": per_class, "num_val_per_class": 0}
    train = load_task(DataParams(**data)).train
    rows = np.flatnonzero(train.raw.labels < num_classes).tolist()
    for row in rows:
        place = folder / train.class_names[train.raw.labels[row]]
        place.mkdir(parents=True, exist_ok=True)
        train.raw.read(row).save(place / f"{row}.png")
    return len(rows)


def step(project: Path, *command: str) -> Step:
    """Run a subcommand of dinv in the clone, with the clone's own code; its bars are not shown."""
    before, started = _cpu(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dinv.cli", *command],
        cwd=project,
        env=os.environ | QUIET | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"dinv {' '.join(command)}: {done.stderr}")
    return Step(f"dinv {' '.join(command)}", time.perf_counter() - started, _cpu() - before, done.stdout)


def _cpu() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def report(steps: Sequence[Step]) -> str:
    """A row per command and their sum."""
    every = Step("in all", sum(s.seconds for s in steps), sum(s.cpu_seconds for s in steps), "")
    rows = [
        {"command": s.command, "minutes": f"{s.seconds / 60:.1f}", "CPU minutes": f"{s.cpu_seconds / 60:.1f}"}
        for s in (*steps, every)
    ]
    return markdown(pd.DataFrame(rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, help="of the pilot; without: its own default")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--tiny", action="store_true", help="as little as possible: does it run?")
    args = parser.parse_args(arguments)
    num_classes, per_class = (2, 10) if args.tiny else (10, 20)
    minutes = 0.01 if args.tiny else args.minutes
    commands = [["init", IMAGES], ["check", *(["--quick"] if args.tiny else [])], ["pilot"]]
    commands[-1] += [] if minutes is None else ["--minutes", f"{minutes:g}"]
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "dinv"
        subprocess.run(["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), str(project)], check=True)
        n = lay_out(project / IMAGES, num_classes, per_class)
        print(f"{machine(torch.device('cpu'))}; {n} images, load {os.getloadavg()[0]:.1f}", flush=True)
        steps = []
        for command in commands:
            steps.append(step(project, *command))
            print(
                f"{steps[-1].command}: {steps[-1].seconds:.0f} s, {steps[-1].cpu_seconds:.0f} CPU s",
                flush=True,
            )
        print(steps[-1].out)
    write_text(args.output, report(steps))
    print(report(steps))


if __name__ == "__main__":
    main()
