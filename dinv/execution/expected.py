"""What a stage is expected to take: `dinv estimate` keeps its numbers, and a stage says them when it starts.

Where nothing is kept, or other settings or another machine were timed, nothing is said: a stage times nothing
for this. What the first seconds of its work say of the rest is a line of its own, see Forecast.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dinv.execution.parts import scratch_root
from dinv.files import atomic_write, digest_of

FILE = "estimate.json"
LOOK = 3.0  # seconds of work that a forecast rests on
WORTH_SAYING = 10.0  # seconds: no line where less is left


def kept_in() -> Path:
    """The file of estimates."""
    return scratch_root() / FILE


def keep(params: Mapping[str, Any], lines: Mapping[str, str]) -> None:
    """Keep a line for each stage, as estimated with all of params.yaml."""
    found = {stage: {"key": key_of(params, stage), "line": line} for stage, line in lines.items()}
    with atomic_write(kept_in()) as temporary:
        temporary.write_text(json.dumps(found, indent=2))


def expected(params: Mapping[str, Any], stage: str) -> str | None:
    """The line of a stage, named as DVC names it; None if it was not estimated with these settings here."""
    try:
        kept = json.loads(kept_in().read_text())[stage]
        return str(kept["line"]) if kept["key"] == key_of(params, stage) else None
    except (OSError, ValueError, KeyError, TypeError):  # no estimate, or none that can be read: no line
        return None


def key_of(params: Mapping[str, Any], stage: str) -> str:
    """Digest of what decides how long a stage takes: its own blocks, the task, the model and the machine."""
    machine = [os.cpu_count(), torch.get_num_threads(), torch.cuda.device_count()]
    return digest_of([stage, _decides(params, stage), params["execution"], machine])


def _decides(params: Mapping[str, Any], stage: str) -> list[Any]:
    name, _, block = stage.partition("@")
    common = [params["data"], params["model"]]
    if name == "download":
        return common
    if name == "invert":
        return [*common, params["invert"][block]]
    if name == "generate":
        return [*common, *_generated(params, block)]
    if name == "train":
        arm = params["arms"][block]
        made = _generated(params, arm["images"].rpartition("/")[2])
        return [*common, arm, params["train"][arm["learner"]], *made]
    return [*common, *(params[section] for section in ("generate", "arms", "train", "measure"))]


def _generated(params: Mapping[str, Any], name: str) -> list[Any]:
    """A block of `generate` and the one of `invert` that it starts from; nothing for real images."""
    made = params["generate"].get(name)
    return [] if made is None else [made, params["invert"].get(made["input"].rpartition("/")[2])]


class Forecast:
    """Says once, after some seconds of work, how long the rest takes; the first unit only warms up."""

    def __init__(self, num_left: int, say: Callable[[str], object]):
        self.num_left, self.say = num_left, say
        self.started: float | None = None
        self.done = 0

    def advance(self, n: int) -> None:
        """n more units are done."""
        now = time.monotonic()
        self.num_left -= n
        if self.started is None:
            self.started = now
            return
        self.done += n
        seconds = now - self.started
        if seconds < LOOK or self.done <= 0 or self.num_left < 0:
            return
        rest = seconds / self.done * self.num_left
        if rest >= WORTH_SAYING:
            self.say(f"about {words(rest)} left, as the first {seconds:.0f} s say")
        self.num_left = -1  # once


def words(seconds: float) -> str:
    """As 3.1 min."""
    unit, name = next((u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if seconds >= u or u == 1)
    return f"{seconds / unit:.1f} {name}"
