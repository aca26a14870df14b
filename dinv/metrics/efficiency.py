"""How many real images an arm is worth."""

from collections.abc import Mapping

import numpy as np


def matching_size(accuracy_by_size: Mapping[int, float], target: float) -> float | None:
    """Number of real images at which training on them reaches the target accuracy.

    Interpolates linearly in the logarithm of the number, along the highest accuracy so far (so that noise
    cannot make it fall). None if no measured number reaches the target; the smallest number if that one does.
    """
    sizes = sorted(accuracy_by_size)
    reached = np.maximum.accumulate([accuracy_by_size[size] for size in sizes])
    if target > reached[-1]:
        return None
    levels, first = np.unique(reached, return_index=True)
    return float(np.exp(np.interp(target, levels, np.log(sizes)[first])))
