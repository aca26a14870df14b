"""Kernel distance between two sets of features (Binkowski et al. 2018: KID is this on Inception-v3's)."""

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.utils import gen_batches

ROWS = 1000


def kernel_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, of [N, D] and [M, D].

    Expectation 0 for sets of one distribution, so it may be negative. All pairs are used, where
    KID's usual code averages over random subsets.
    """
    n, m = len(a), len(b)
    within_a = (_kernel_sum(a, a) - _diagonal_sum(a)) / (n * (n - 1))
    within_b = (_kernel_sum(b, b) - _diagonal_sum(b)) / (m * (m - 1))
    return within_a + within_b - 2 * _kernel_sum(a, b) / (n * m)


def _kernel_sum(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return sum(float(polynomial_kernel(a[rows], b, 3).sum()) for rows in gen_batches(len(a), ROWS))


def _diagonal_sum(a: NDArray[np.floating]) -> float:
    return float(((np.square(a.astype(np.float64)).sum(1) / a.shape[1] + 1) ** 3).sum())
