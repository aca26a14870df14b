"""Stratified, seeded choice of a labelled task from a pool of images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.rng import generator


def shuffled_by_class(labels: NDArray[np.int64], num_classes: int, seed: int) -> list[list[int]]:
    """Indices of each class in a seeded random order that does not depend on other classes."""
    orders = []
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        order = torch.randperm(len(members), generator=generator(seed, "split", label))
        orders.append(members[order.numpy()].tolist())
    return orders


def split_train_val(
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    num_per_class: int | None,
    num_val_per_class: int,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Choose training and validation images per class.

    Training takes the first `num_per_class` of each class's random order and validation the last
    `num_val_per_class`: sets of different sizes are nested, and validation does not move.

    Raises:
        UserError: a class has too few images.
    """
    train: list[int] = []
    val: list[int] = []
    for name, order in zip(class_names, shuffled_by_class(labels, len(class_names), seed), strict=True):
        wanted = num_per_class if num_per_class is not None else len(order) - num_val_per_class
        if wanted < 1 or wanted + num_val_per_class > len(order):
            raise UserError(
                f"class {name!r} has {len(order)} images for data.num_per_class = {num_per_class} "
                f"and data.num_val_per_class = {num_val_per_class}; add images or lower these"
            )
        train += order[:wanted]
        val += order[len(order) - num_val_per_class :]
    return sorted(train), sorted(val)


def split_off_test(
    labels: NDArray[np.int64], class_names: Sequence[str], seed: int, fraction: float = 0.2
) -> tuple[list[int], list[int]]:
    """Split a pool without a test split: a fifth of every class, at least one image, is for test."""
    rest: list[int] = []
    test: list[int] = []
    for order in shuffled_by_class(labels, len(class_names), seed):
        num_test = max(1, round(fraction * len(order)))
        test += order[:num_test]
        rest += order[num_test:]
    return sorted(rest), sorted(test)
