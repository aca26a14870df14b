"""Compare image sets by their features: arrays in, tidy tables out.

Every number is a mean over draws. What varies between draws is which of the images at hand are used: the
test images are divided anew into the reference and `unseen`, and of a set with more images than are
compared others are chosen. A set with no more images than that, such as the few real training images, is
the same in every draw: its spread says nothing about another choice of labelled images. These are as many
of each class, which a random choice of test images is not: `real` may come out a little nearer than `unseen`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinv.metrics.frechet import frechet_distance
from dinv.metrics.kernel_distance import kernel_distance
from dinv.metrics.neighbors import nearest_distance, prdc, share_nearer
from dinv.metrics.tables import markdown, mean_and_spread
from dinv.rng import derive_seed

Features = NDArray[np.floating]
Numbers = tuple[str, int, str, float]  # image set, number of images, metric, value
METRICS = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")
REAL, UNSEEN = "real", "unseen"
COLUMNS = ["features", "images", "num_images", "metric", "value", "std", "num_draws"]


def image_set_numbers(
    name: str,
    sets: Mapping[str, Features],
    test: Features,
    sizes: Sequence[int],
    num_neighbors: int,
    num_draws: int,
    seed: int,
) -> pd.DataFrame:
    """Every set, and unseen real images, against real ones: means and std over draws, with COLUMNS.

    Args:
        name: of the features; unlike ones have nothing in common.
        sets: features [N, D] of image sets; those of the real training images under `real`.
        test: features of test images, at least twice the largest size.
        sizes: numbers of images at which sets are compared, where they have as many.
        num_neighbors: k of precision, recall, density and coverage.
        num_draws: how often images are chosen.
        seed: chooses them; the same sets give the same numbers at every call.
    """
    draws: list[Numbers] = []
    for draw in range(num_draws):
        reference, unseen = divide(test, derive_seed(seed, draw))
        chosen = {**sets, UNSEEN: unseen}
        draws += distribution_distances(chosen, reference, sizes, num_neighbors, derive_seed(seed, draw))
        others = {images: features for images, features in chosen.items() if images != REAL}
        draws += memorisation(others, sets[REAL], reference, derive_seed(seed, draw))
    return _over_draws(name, draws)


def choose(num_available: int, num_wanted: int, seed: int) -> NDArray[np.int64]:
    """Rows of a random subset, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(num_available)[:num_wanted])


def divide(features: Features, seed: int) -> tuple[Features, Features]:
    """Two random halves, the first the larger by at most one."""
    order = np.random.default_rng(seed).permutation(len(features))
    middle = (len(order) + 1) // 2
    return features[order[:middle]], features[order[middle:]]


def distribution_distances(
    sets: Mapping[str, Features],
    reference: Features,
    sizes: Sequence[int],
    num_neighbors: int,
    seed: int,
) -> list[Numbers]:
    """Every set against the reference, at each size that both have; no set's choice depends on the others."""
    rows = []
    for size in sizes:
        real = reference[choose(len(reference), size, derive_seed(seed, "reference", size))]
        for images, features in sets.items():
            if len(features) < size:
                continue
            fake = features[choose(len(features), size, derive_seed(seed, images, size))]
            values = {
                "frechet_distance": frechet_distance(real, fake),
                "kernel_distance": kernel_distance(real, fake),
                **asdict(prdc(real, fake, num_neighbors)),
            }
            rows += [(images, size, metric, value) for metric, value in values.items()]
    return rows


def memorisation(sets: Mapping[str, Features], train: Features, unseen: Features, seed: int) -> list[Numbers]:
    """How near each set comes to training images and to as many unseen ones.

    `nearest_train_distance` and `nearest_unseen_distance` are medians; `share_nearer_train` is about
    0.5 for new images and 1 for copies of the training images.
    """
    size = min(len(train), len(unseen))
    train, unseen = (x[choose(len(x), size, derive_seed(seed, "memorisation"))] for x in (train, unseen))
    return [
        (images, len(features), metric, value)
        for images, features in sets.items()
        for metric, value in (
            ("nearest_train_distance", float(np.median(nearest_distance(features, train)))),
            ("nearest_unseen_distance", float(np.median(nearest_distance(features, unseen)))),
            ("share_nearer_train", share_nearer(features, train, unseen)),
        )
    ]


def _over_draws(name: str, draws: Sequence[Numbers]) -> pd.DataFrame:
    table = pd.DataFrame(draws, columns=["images", "num_images", "metric", "value"])
    groups = table.groupby(["images", "num_images", "metric"], sort=False)["value"]
    found = groups.agg(value="mean", std="std", num_draws="count").round(6).reset_index()
    return found.assign(features=name)[COLUMNS]


def distances_table(numbers: pd.DataFrame) -> str:
    """Markdown: a line per features, size and image set, a column per distance, mean ± std over draws."""
    rows = numbers[numbers["metric"].isin(METRICS)]
    cells = rows.assign(cell=[_cell(*pair) for pair in zip(rows["value"], rows["std"], strict=True)])
    keys = ["features", "num_images", "images"]
    # Categories keep rows in order of appearance, which a pivot would sort.
    order = {key: pd.Categorical(cells[key], cells[key].unique()) for key in keys}
    wide = cells.assign(**order).pivot_table(
        index=keys, columns="metric", values="cell", aggfunc="first", observed=True
    )
    wide = wide.reindex(columns=list(METRICS)).rename(columns=lambda metric: metric.replace("_", " "))
    table = wide.reset_index().rename(columns={"num_images": "N"})
    return markdown(table[["features", "images", "N", *wide.columns]])


def _cell(value: float, std: float) -> str:
    return mean_and_spread(value, std, digits=4)
