"""What a run cost, as far as files tell: work by parameters, size by dvc.lock, time by finished parts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinv.classify.arms import Arm
from dinv.errors import UserError
from dinv.execution.parts import scratch_root
from dinv.files import file_digest
from dinv.images.image_set import ImageSetReader
from dinv.report.files import Files, Workspace, yaml

# Stage -> folder of its outputs, and of its finished parts.
FOLDERS = {"invert": "data/learned", "generate": "data/generated", "train": "data/classifiers"}
STORES = {"invert": "invert", "generate": "generated", "train": "train"}


@dataclass(frozen=True)
class StageCost:
    """One stage: what it computed in words, bytes it left, seconds as far as finished parts tell."""

    stage: str
    work: str
    size: int | None
    seconds: float | None

    @property
    def size_text(self) -> str:
        """In MB."""
        return "unknown" if self.size is None else f"{self.size / 1e6:.1f} MB"

    @property
    def time_text(self) -> str:
        """In seconds or minutes."""
        if self.seconds is None:
            return "unknown"
        return f"about {self.seconds:.0f} s" if self.seconds < 90 else f"about {self.seconds / 60:.0f} min"


def cost_section(files: Files, params: Mapping[str, Any], arms: Mapping[str, Arm]) -> list[StageCost]:
    """A line per stage of dvc.lock, in order of the pipeline."""
    stages = yaml(files, "dvc.lock").get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UserError(f"{files.name}: dvc.lock: has no stages")
    order = ("download", "invert", "generate", "measure", "train", "evaluate")
    names = sorted(stages, key=lambda name: (_rank(name, order), list(stages).index(name)))
    return [
        StageCost(name, _work(files, name, params, arms), _size(stages[name]), _seconds(files, name))
        for name in names
    ]


def _rank(name: str, order: Sequence[str]) -> int:
    stage = name.partition("@")[0]
    return order.index(stage) if stage in order else len(order)


def _size(entry: Any) -> int | None:
    """Bytes of a stage's outputs in dvc.lock."""
    sizes = [out.get("size") for out in entry.get("outs", [])]
    return None if None in sizes or not sizes else int(sum(sizes))


def _work(files: Files, name: str, params: Mapping[str, Any], arms: Mapping[str, Arm]) -> str:
    stage, _, block = name.partition("@")
    try:
        if stage == "invert":
            return _inversion(files, params["invert"][block])
        if stage == "generate":
            return _generation(ImageSetReader(files.folder(f"data/generated/{block}")))
        if stage == "train":
            return _training(params["train"][arms[block].learner])
    except (UserError, KeyError, TypeError):
        return "not counted: its block or its images are not here"
    return ""


def _inversion(files: Files, block: Mapping[str, Any]) -> str:
    if block["method"] != "image_embeddings":
        return f"method {block['method']}: not counted"
    num, visits = len(ImageSetReader(files.folder("data/real/train")).ids), int(block["num_visits"])
    return f"{num * visits:,} forward and backward passes of the UNet ({num} images, {visits} each)"


def _generation(made: ImageSetReader) -> str:
    """Passes of one image through the UNet, from the table of images."""
    facts = made.provenance
    if "unet_passes" in facts:
        passes = sum(int(n) for n in facts["unet_passes"])
        return f"{len(made):,} images, {passes:,} passes of an image through the UNet"
    return f"{len(made):,} images; UNet passes are not recorded"


def _training(block: Mapping[str, Any]) -> str:
    seeds = len(block["seeds"])
    if "num_steps" not in block or "batch_size" not in block:
        return f"{seeds} classifiers"
    steps, size = int(block["num_steps"]), int(block["batch_size"])
    return f"{seeds} classifiers, {steps} steps of {size} images each"


def _seconds(files: Files, name: str) -> float | None:
    """Median time between finished parts times their number; None of fewer than three parts.

    DVC records no time. A stage's output has the bytes of finished parts, which lie in the scratch folder
    with the moments that they were finished at. A median stands for all, so that a pause does not count.
    """
    stage, _, block = name.partition("@")
    if stage not in FOLDERS or not isinstance(files, Workspace):
        return None
    outputs = sorted((files.root / FOLDERS[stage] / block).glob("part-*"))
    scratch = scratch_root() if files.root == Path() else files.root / ".scratch"
    finished = dict(_finished(scratch / STORES[stage]))
    moments = sorted(finished[d] for d in map(file_digest, outputs) if d in finished)
    if len(moments) < 3 or len(moments) != len(outputs):
        return None
    return float(np.median(np.diff(moments))) * len(moments)


def _finished(store: Path) -> Iterator[tuple[str, float]]:
    """Digest and moment of every finished part."""
    for part in store.glob("*.part"):
        try:
            yield json.loads(part.with_suffix(".json").read_text())["sha256"], part.stat().st_mtime
        except (OSError, ValueError, KeyError):
            continue  # a part without its sidecar does not count as finished
