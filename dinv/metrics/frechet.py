"""Frechet distance between two sets of features (Heusel et al. 2017: FID is this on Inception-v3's)."""

import numpy as np
from numpy.typing import NDArray


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features [N, D] and [M, D]; 0 for equal sets.

    m and S are mean and unbiased covariance, computed in float64. Estimates are biased upwards the
    more, the fewer the rows: compare sets of equal size only.
    """
    mean_a, cov_a = _gaussian(a)
    mean_b, cov_b = _gaussian(b)
    root_a = _square_root(cov_a)
    # (S_a S_b)^(1/2) has the eigenvalues of the symmetric (S_a^(1/2) S_b S_a^(1/2))^(1/2).
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)
    distance = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b) - 2 * np.sqrt(cross).sum()
    return max(float(distance), 0.0)


def _gaussian(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
