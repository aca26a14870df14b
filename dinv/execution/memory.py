"""Batches that fit into the memory at hand."""

from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")
Advance = Callable[[int], None]


class FittingBatch:
    """Starts at execution.micro_batch and is halved, for good, whenever the GPU's memory runs out."""

    def __init__(self, size: int):
        self.size = size

    def run(self, compute: Callable[[int, Advance], T], advance: Advance) -> T:
        """Call compute(size, advance), again with half the size after each torch.OutOfMemoryError.

        What was done before the memory ran out is taken off the progress bar.

        Raises:
            torch.OutOfMemoryError: a batch of one image does not fit.
        """
        while True:
            done: list[int] = []
            try:
                return compute(self.size, _counted(advance, done))
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            # Here, not in the handler: the exception's frames would keep the tensors alive.
            advance(-sum(done))
            self.size = (self.size + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            tqdm.write(f"out of GPU memory; going on with a micro-batch of {self.size}")


def _counted(advance: Advance, done: list[int]) -> Advance:
    def count(n: int) -> None:
        done.append(n)
        advance(n)

    return count
