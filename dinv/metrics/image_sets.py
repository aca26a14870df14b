"""Compare image sets by their features: arrays in, tidy rows out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dinv.metrics.frechet import frechet_distance
from dinv.metrics.kernel_distance import kernel_distance
from dinv.metrics.neighbors import nearest_distance, prdc, share_nearer

Features = NDArray[np.floating]
METRICS = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Measurement:
    """One number about one image set at one size; `features` names the network, so unlike ones stay apart."""

    features: str
    images: str
    num_images: int
    metric: str
    value: float


def choose(num_available: int, num_wanted: int, g: np.random.Generator) -> NDArray[np.int64]:
    """Rows of a random subset, in ascending order."""
    return np.sort(g.permutation(num_available)[:num_wanted])


def distribution_distances(
    name: str,
    sets: Mapping[str, Features],
    reference: Features,
    sizes: Sequence[int],
    num_neighbors: int,
    seed: int,
) -> list[Measurement]:
    """Every set against the reference, at each size that both have; the same subsets at every call."""
    rows = []
    for size in sizes:
        real = reference[choose(len(reference), size, np.random.default_rng(seed))]
        for images, features in sets.items():
            if len(features) < size:
                continue
            fake = features[choose(len(features), size, np.random.default_rng(seed + 1))]
            values = {
                "frechet_distance": frechet_distance(real, fake),
                "kernel_distance": kernel_distance(real, fake),
                **asdict(prdc(real, fake, num_neighbors)),
            }
            rows += [Measurement(name, images, size, metric, value) for metric, value in values.items()]
    return rows


def memorisation(
    name: str, sets: Mapping[str, Features], train: Features, unseen: Features, seed: int
) -> list[Measurement]:
    """How near each set comes to the training images and to as many unseen ones.

    `nearest_train_distance` and `nearest_unseen_distance` are medians; `share_nearer_train` is about
    0.5 for new images and 1 for copies of the training images.
    """
    size = min(len(train), len(unseen))
    train, unseen = (x[choose(len(x), size, np.random.default_rng(seed))] for x in (train, unseen))
    return [
        Measurement(name, images, len(features), metric, value)
        for images, features in sets.items()
        for metric, value in (
            ("nearest_train_distance", float(np.median(nearest_distance(features, train)))),
            ("nearest_unseen_distance", float(np.median(nearest_distance(features, unseen)))),
            ("share_nearer_train", share_nearer(features, train, unseen)),
        )
    ]


def distances_table(rows: Sequence[Measurement]) -> str:
    """Markdown: one line per features, size and image set, one column per distance."""
    lines = [
        "| features | images | N | " + " | ".join(m.replace("_", " ") for m in METRICS) + " |",
        "|" + "---|" * (3 + len(METRICS)),
    ]
    found = {(r.features, r.num_images, r.images, r.metric): r.value for r in rows}
    keys = dict.fromkeys((r.features, r.num_images, r.images) for r in rows if r.metric in METRICS)
    for features, size, images in keys:
        values = [f"{found[features, size, images, m]:.4f}" for m in METRICS]
        lines.append(f"| {features} | {images} | {size} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"
