"""What nearest neighbours tell about two sets of features: fidelity, diversity, memorisation.

Exact Euclidean neighbours by scikit-learn, in chunks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

Features = NDArray[np.floating]


@dataclass(frozen=True)
class PRDC:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Features, fake: Features, num_neighbors: int) -> PRDC:
    """Compare `fake` [M, D] with `real` [N, D]; all in [0, 1] but density, which may exceed 1.

    An image's ball reaches to its k-th neighbour in its own set, itself excluded; inside is strictly
    nearer. precision: share of fakes in any real ball; recall: share of reals in any fake ball;
    density: mean over fakes of real balls around them, over k; coverage: share of reals whose ball
    holds a fake. Depends on k and on the sizes of the sets: compare at equal ones only.
    """
    real_radii, fake_radii = (_radii(x, num_neighbors) for x in (real, fake))
    balls = np.zeros(len(fake), np.int64)  # of reals, around each fake

    def reduce(distances: NDArray[np.float64], start: int) -> tuple[Any, Any]:
        """Distances of some reals to all fakes -> does its ball hold a fake, is it in the ball of one."""
        inside = distances < real_radii[start : start + len(distances), None]
        np.add(balls, inside.sum(0), out=balls)
        return inside.any(1), (distances < fake_radii).any(1)

    chunks = pairwise_distances_chunked(real.astype(np.float64), fake.astype(np.float64), reduce_func=reduce)
    covered, reached = (np.concatenate(flags) for flags in zip(*chunks, strict=True))
    return PRDC(
        precision=float((balls > 0).mean()),
        recall=float(reached.mean()),
        density=float(balls.mean()) / num_neighbors,
        coverage=float(covered.mean()),
    )


def nearest_distance(queries: Features, points: Features) -> NDArray[np.float64]:
    """Distance from each query to the nearest of `points`, float64 [number of queries]."""
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points.astype(np.float64))
    return index.kneighbors(queries.astype(np.float64))[0][:, 0]


def share_nearer(queries: Features, a: Features, b: Features) -> float:
    """Share of queries nearer to `a` than to `b`, ties half; give sets of equal size.

    With `a` the training and `b` unseen images, new images have about 0.5 and copies of the
    training images 1.
    """
    to_a, to_b = nearest_distance(queries, a), nearest_distance(queries, b)
    return float(((to_a < to_b) + 0.5 * (to_a == to_b)).mean())


def _radii(x: Features, num_neighbors: int) -> NDArray[np.float64]:
    """Distance of each row to its k-th neighbour among the others."""
    index = NearestNeighbors(n_neighbors=num_neighbors, algorithm="brute").fit(x.astype(np.float64))
    return index.kneighbors()[0][:, -1]
