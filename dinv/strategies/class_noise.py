"""Noise on embeddings that has the covariance of learned embeddings, in place of the same in all directions.

The covariance is shrunk towards a multiple of the identity: few embeddings span few directions.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shrunk:
    """Sigma = (1 - s) X^T X / n + s mu I, where mu is the mean variance of an element (Ledoit and Wolf 2004).

    It is never made: a draw needs its n rows only.

    Attributes:
        rows: X, deviations from the mean, float32 [n, D].
        shrinkage: s in [0, 1].
        variance: mu > 0.
    """

    rows: torch.Tensor
    shrinkage: float
    variance: float

    def draw(self, eps: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """xi = sqrt((1 - s) / n) X^T w + sqrt(s mu) eps: N(0, Sigma) if eps [D] and w [n] are N(0, I)."""
        spread = ((1 - self.shrinkage) / len(self.rows)) ** 0.5
        return spread * (w @ self.rows) + (self.shrinkage * self.variance) ** 0.5 * eps


def shrunk(rows: torch.Tensor) -> Shrunk:
    """Of deviations from a mean, [n, D] with n >= 2; s is Ledoit and Wolf's, by scikit-learn.

    Raises:
        ValueError: all rows are 0.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # noqa: PLC0415 - seconds

    variance = float(rows.double().square().mean())
    if variance == 0:
        raise ValueError("no spread")
    s = float(ledoit_wolf_shrinkage(rows.double().numpy(), assume_centered=True))
    return Shrunk(rows, s, variance)


def nearest_others(means: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """For each of M classes the other one whose mean embedding is nearest, int64 [M].

    Args:
        means: float32 [M, K, D].
        present: bool [M], classes that have images, two at least; others are nobody's nearest.
    """
    flat = means.flatten(1).double()
    distances = torch.cdist(flat, flat)
    distances.fill_diagonal_(torch.inf)
    distances[:, ~present] = torch.inf
    return distances.argmin(1)
