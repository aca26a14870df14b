"""Which images are learned from, which settings are chosen on, and which are scored.

The labelled images are divided into blocks with as many of each class. Every block is a small data set of
its own: images are generated from it as if there were no others, so what is generated from one block knows
nothing of another. A training set is a run of neighbouring blocks with what was generated from them, and is
scored on all other blocks. Settings are chosen inside the training set: what was trained on one half of it is
measured on the other. Such halves are training sets of the level below, so no training is done for the choice
alone; only single blocks have halves of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.images.split import keyed_order

MOST_BLOCKS = 5
LEVELS = (1, 2, 4)  # blocks to learn from
FEWEST_TO_HALVE = 4  # images of each class in a block whose halves are trained on


@dataclass(frozen=True)
class Subset:
    """Neighbouring blocks, or one half (0 or 1) of a block."""

    blocks: tuple[int, ...]
    half: int | None = None

    @property
    def name(self) -> str:
        """Short and distinct."""
        half = "" if self.half is None else f".{self.half}"
        return f"{'-'.join(map(str, self.blocks))}{half}"


@dataclass(frozen=True)
class Draw:
    """A training set, and its halves, of which each is measured on the other to choose settings."""

    subset: Subset
    halves: tuple[Subset, Subset]


@dataclass(frozen=True)
class Design:
    """Blocks of N images.

    Attributes:
        labels: int64 [N], as many of each class.
        ids: of the images.
        num_blocks: how many.
        seed: decides on the blocks.
    """

    labels: NDArray[np.int64]
    ids: Sequence[str]
    num_blocks: int
    seed: int

    @cached_property
    def block_size(self) -> int:
        """Images of each class in a block."""
        return len(self.labels) // len(np.unique(self.labels)) // self.num_blocks

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Place of each image among those of its class, in a random order, [N]."""
        found = np.zeros(len(self.labels), np.int64)
        order = np.asarray(keyed_order(self.ids, self.seed, "pilot blocks"))
        for k in np.unique(self.labels):
            rows = order[self.labels[order] == k]
            found[rows] = np.arange(len(rows))
        return found

    def rows(self, subset: Subset) -> NDArray[np.int64]:
        """Images of a subset, in ascending order."""
        block, place = np.divmod(self.places, self.block_size)
        inside = np.isin(block, subset.blocks)
        if subset.half is not None:
            inside &= (place >= self.block_size // 2) == bool(subset.half)
        return np.flatnonzero(inside)

    def scored(self, draw: Draw) -> NDArray[np.int64]:
        """Images that neither its training nor its choice of settings has seen."""
        return np.setdiff1d(np.arange(len(self.labels)), self.rows(draw.subset))

    @property
    def levels(self) -> list[int]:
        """Numbers of blocks to learn from: those that leave a block to score on and have halves."""
        most, least = self.num_blocks - 1, 1 if self.block_size >= FEWEST_TO_HALVE else 2
        return [b for b in LEVELS if least <= b <= most]

    def draws(self, level: int) -> list[Draw]:
        """Every run of `level` blocks in a circle: each image is learned from as often as any other."""
        runs = [
            tuple((first + i) % self.num_blocks for i in range(level)) for first in range(self.num_blocks)
        ]
        return [Draw(Subset(run), _halves(run)) for run in runs]

    def blocks(self) -> list[Subset]:
        """Every block."""
        return [Subset((b,)) for b in range(self.num_blocks)]

    def trainings(self) -> list[Subset]:
        """Everything that is learned from, each once, small ones first."""
        draws = [draw for level in self.levels for draw in self.draws(level)]
        found = {s: None for draw in draws for s in (*draw.halves, draw.subset)}
        return sorted(found, key=lambda s: (len(s.blocks), s.half is None, s.name))


def _halves(run: tuple[int, ...]) -> tuple[Subset, Subset]:
    if len(run) == 1:
        return Subset(run, 0), Subset(run, 1)
    middle = len(run) // 2
    return Subset(run[:middle]), Subset(run[middle:])


def choose_rows(
    labels: NDArray[np.int64], ids: Sequence[str], names: Sequence[str], most: int | None, seed: int
) -> tuple[list[int], int]:
    """Rows with as many images of each class, in ascending order, and the number of blocks.

    Args:
        labels: int64 [N] of the labelled images.
        ids: theirs.
        names: of the classes.
        most: images of each class in a block, at most; None: as many as there are.
        seed: chooses the images of classes that have more than the smallest.

    Raises:
        UserError: a class has too few images.
    """
    counts = np.bincount(labels, minlength=len(names))
    fewest = int(counts.min())
    if fewest < 6:
        name = names[int(counts.argmin())]
        raise UserError(
            f"class {name!r} has {fewest} labelled images; a pilot needs 6 of each class: label more, "
            "or raise data.num_per_class"
        )
    num_blocks = min(MOST_BLOCKS, fewest // 2)
    size = fewest // num_blocks if most is None else min(most, fewest // num_blocks)
    order = np.asarray(keyed_order(ids, seed, "pilot images"))
    rows = [order[labels[order] == k][: size * num_blocks] for k in range(len(names))]
    return sorted(np.concatenate(rows).tolist()), num_blocks
