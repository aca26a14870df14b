"""Stratified, seeded choice of a labelled task from a pool of images.

Every order is that of a hash of (seed, id): it does not depend on which other images there are, so
adding some moves no other.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.rng import derive_seed


def keyed_order(ids: Sequence[str], seed: int, purpose: str) -> list[int]:
    """Positions of the ids in a random order of their own."""
    return sorted(range(len(ids)), key=lambda i: derive_seed(seed, purpose, ids[i]))


def shuffled_by_class(
    labels: NDArray[np.int64], ids: Sequence[str], num_classes: int, seed: int
) -> list[list[int]]:
    """Indices of each class in keyed order."""
    orders: list[list[int]] = [[] for _ in range(num_classes)]
    for i in keyed_order(ids, seed, "split"):
        orders[int(labels[i])].append(i)
    return orders


def split_train_val(
    labels: NDArray[np.int64],
    ids: Sequence[str],
    class_names: Sequence[str],
    num_per_class: int | None,
    num_val_per_class: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Choose training and validation images per class.

    Training takes the first `num_per_class` of each class's order and validation the last
    `num_val_per_class`: validation does not move with the size, and a larger training set starts
    with the smaller one, since all classes' first images come first, then all their second ones.

    Raises:
        UserError: a class has too few images.
    """
    chosen: list[list[int]] = []
    val: list[int] = []
    orders = shuffled_by_class(labels, ids, len(class_names), seed)
    for name, order in zip(class_names, orders, strict=True):
        wanted = num_per_class if num_per_class is not None else len(order) - num_val_per_class
        if wanted < 1 or wanted + num_val_per_class > len(order):
            raise UserError(
                f"class {name!r} has {len(order)} images for data.num_per_class = {num_per_class} "
                f"and data.num_val_per_class = {num_val_per_class}; add images or lower these"
            )
        chosen.append(order[:wanted])
        val += order[len(order) - num_val_per_class :]
    longest = max(len(rows) for rows in chosen)
    train = [rows[rank] for rank in range(longest) for rows in chosen if rank < len(rows)]
    return train, sorted(val)


def split_off_test(
    labels: NDArray[np.int64],
    ids: Sequence[str],
    class_names: Sequence[str],
    seed: int,
    fraction: float = 0.2,
) -> tuple[list[int], list[int]]:
    """Split a pool without a test split: a fifth of every class, at least one image, is for test."""
    rest: list[int] = []
    test: list[int] = []
    for order in shuffled_by_class(labels, ids, len(class_names), seed):
        num_test = max(1, round(fraction * len(order)))
        test += order[:num_test]
        rest += order[num_test:]
    return sorted(rest), sorted(test)
