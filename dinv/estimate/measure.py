"""Timing a little of some work: ranges of seconds, clocks of its units, and the memory that it takes."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

SAMPLE_EVERY = 0.02  # seconds between looks at the process's memory


@dataclass(frozen=True)
class Range:
    """Seconds: the least, the median and the most of what was seen, or sums and multiples of such."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, seen: Sequence[float]) -> "Range":
        """Of at least one measurement."""
        return cls(min(seen), statistics.median(seen), max(seen))

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.median + other.median, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.median * factor, self.high * factor)


NOTHING = Range(0.0, 0.0, 0.0)


class Clock:
    """Notes when units of work are done; `advance` is what long work calls.

    A GPU is waited for: its work is done later than it is asked for.
    """

    def __init__(self, device: torch.device):
        self.device, self.units = device, 0
        self.times = [self._now()]

    def advance(self, n: int) -> None:
        """n more units are done."""
        self.units += n
        self.times.append(self._now())

    @property
    def steps(self) -> list[float]:
        """Seconds from the start to the first note, from that to the second, ..."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    def total(self) -> float:
        """Seconds from the start to now."""
        return self._now() - self.times[0]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes."""
    clock = Clock(device)
    work()
    return clock.total()


def fitting_size(seconds_per_image: float, most: int, seconds: float) -> int:
    """How many images to time together: `most`, or as many as take `seconds`, but at least one."""
    return max(1, min(most, int(seconds / max(seconds_per_image, 1e-9))))


@dataclass
class Memory:
    """Most bytes in use at a time: of the process's memory, and of the GPU's."""

    process: int = 0
    gpu: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Memory]:
    """Watch memory while the block runs; the result is there when it has ended."""
    found, process, done = Memory(), psutil.Process(), threading.Event()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def look() -> None:
        while True:
            found.process = max(found.process, process.memory_info().rss)
            if done.wait(SAMPLE_EVERY):
                return

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        if device.type == "cuda":
            found.gpu = torch.cuda.max_memory_allocated(device)
