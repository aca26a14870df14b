"""Calibration error: how far confidence is from accuracy (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15


def expected_calibration_error(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], num_bins: int = NUM_BINS
) -> float:
    """Mean over images of |accuracy - confidence| of their bin, in percentage points.

    `probabilities` is [N, M]; an image's confidence is the largest of its row. Bins have equal
    width in (0, 1] and contain their upper edge.
    """
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    bins = np.ceil(confidence * num_bins).astype(np.int64).clip(1, num_bins) - 1
    # |sum of correct - sum of confidence| of a bin is its share times its gap, times N.
    gaps = np.bincount(bins, correct, num_bins) - np.bincount(bins, confidence, num_bins)
    return 100 * float(np.abs(gaps).sum()) / len(labels)
