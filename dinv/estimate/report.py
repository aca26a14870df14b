"""An estimate as a table and as JSON."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from dinv.estimate.measure import NOTHING, Range
from dinv.estimate.stages import Cost
from dinv.metrics.tables import markdown

COPIES = 2  # of each output: in data/ and in DVC's cache, where the file system cannot share them


@dataclass(frozen=True)
class Row:
    """A stage: its cost, its seconds with the start of its process, whether DVC would skip it."""

    stage: str
    cost: Cost
    seconds: Range
    finished: bool

    @property
    def keeps_parts(self) -> bool:
        """Whether finished parts stay in .scratch besides."""
        return self.stage.partition("@")[0] in ("invert", "generate", "train", "measure")


@dataclass(frozen=True)
class Estimate:
    """All stages.

    Attributes:
        rows: in the order in which they run.
        hardware: in words.
        start: seconds that the start of a process takes, which is part of each stage's.
        price_per_hour: None: no costs.
    """

    rows: list[Row]
    hardware: str
    start: float
    price_per_hour: float | None

    @cached_property
    def total(self) -> Range:
        """Seconds of all stages that can be estimated."""
        return _sum([row for row in self.rows if not row.cost.note])

    @cached_property
    def to_do(self) -> Range:
        """The same without stages that are finished."""
        return _sum([row for row in self.rows if not row.cost.note and not row.finished])

    @property
    def disk(self) -> int:
        """Bytes of outputs, of their copies in DVC's cache, and of finished parts in .scratch."""
        return sum(row.cost.disk * (COPIES + row.keeps_parts) for row in self.rows)

    def price(self, seconds: Range) -> Range | None:
        """What seconds cost."""
        return None if self.price_per_hour is None else seconds * (self.price_per_hour / 3600)


def _sum(rows: list[Row]) -> Range:
    total = NOTHING
    for row in rows:
        total = total + row.seconds
    return total


def as_json(found: Estimate) -> dict[str, Any]:
    """Stages with all numbers; seconds and prices as low, median and high."""
    return {
        "hardware": found.hardware,
        "start_seconds": found.start,
        "price_per_hour": found.price_per_hour,
        "stages": [_stage(row, found) for row in found.rows],
        "total": _sums(found.total, found),
        "to_do": _sums(found.to_do, found),
        "disk_bytes": found.disk,
        "memory_bytes": max(row.cost.memory.process for row in found.rows),
        "gpu_memory_bytes": max(row.cost.memory.gpu for row in found.rows),
        "not_estimated": {row.stage: row.cost.note for row in found.rows if row.cost.note},
    }


def _stage(row: Row, found: Estimate) -> dict[str, Any]:
    return {
        "stage": row.stage,
        "finished": row.finished,
        "work": row.cost.work,
        **_sums(row.seconds, found),
        "disk_bytes": row.cost.disk,
        "memory_bytes": row.cost.memory.process,
        "gpu_memory_bytes": row.cost.memory.gpu,
        "note": row.cost.note,
    }


def _sums(seconds: Range, found: Estimate) -> dict[str, Any]:
    price = found.price(seconds)
    return {"seconds": vars(seconds), "cost": None if price is None else vars(price)}


def table(found: Estimate) -> str:
    """Markdown, then sentences on what the numbers mean."""
    lines = [_line(row, found) for row in found.rows]
    lines.append(_total("in all", found.total, found))
    if any(row.finished for row in found.rows):
        lines.append(_total("still to do", found.to_do, found))
    return markdown(pd.DataFrame(lines).fillna("")) + "\n" + "\n".join(_remarks(found))


def _line(row: Row, found: Estimate) -> dict[str, str]:
    if row.cost.note:
        return {"stage": row.stage, "work": f"not estimated: {row.cost.note}"}
    memory = row.cost.memory
    return {
        "stage": f"{row.stage} (finished)" if row.finished else row.stage,
        "work": ", ".join(f"{count:,} {name}" for name, count in row.cost.work.items()),
        "time": duration(row.seconds),
        "disk": size(row.cost.disk),
        "memory": size(memory.process) + (f", GPU {size(memory.gpu)}" if memory.gpu else ""),
        **_price(row.seconds, found),
    }


def _total(name: str, seconds: Range, found: Estimate) -> dict[str, str]:
    disk = {"disk": size(found.disk)} if name == "in all" else {}
    return {"stage": name, "time": duration(seconds), **disk, **_price(seconds, found)}


def _price(seconds: Range, found: Estimate) -> dict[str, str]:
    price = found.price(seconds)
    if price is None:
        return {}
    return {"cost": f"{price.median:.2f} ({price.low:.2f} to {price.high:.2f})"}


def _remarks(found: Estimate) -> list[str]:
    missing = [row.stage for row in found.rows if row.cost.note]
    return [
        f"Measured on {found.hardware}, with {found.start:.1f} s for the start of each stage's process.",
        "Ranges go from the fastest to the slowest micro-batch that was timed; other work widens them.",
        "Disk in all counts the copies in DVC's cache and finished parts in .scratch.",
        *([f"Not in the sums: {', '.join(missing)}."] if missing else []),
    ]


def lines(found: Estimate) -> dict[str, str]:
    """Stage -> its time and outputs as the table has them; without stages that could not be estimated."""
    return {
        row.stage: f"{duration(row.seconds)}, {size(row.cost.disk)} on the disk"
        for row in found.rows
        if not row.cost.note
    }


def duration(seconds: Range) -> str:
    """As 3.1 min (2.9 to 4.0): the unit is that of the median."""
    unit, name = next(
        (u, n) for u, n in ((3600, "h"), (60, "min"), (1, "s")) if seconds.median >= u or u == 1
    )
    low, median, high = (f"{s / unit:.1f}" for s in (seconds.low, seconds.median, seconds.high))
    return f"{median} {name} ({low} to {high})"


def size(num_bytes: int) -> str:
    """As 3.1 MB."""
    unit, name = next(
        (u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if num_bytes >= u or u == 1e3
    )
    return f"{num_bytes / unit:.1f} {name}"
