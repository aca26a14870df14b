"""How strong a penalty should be: the search of CLIP's paper (Radford et al. 2021, appendix A.3)."""

from collections.abc import Callable
from functools import cache
from typing import Any

PER_DECADE = 8
STRENGTHS = tuple(10 ** (i / PER_DECADE - 6) for i in range(12 * PER_DECADE + 1))  # 1e-6 to 1e6
MOST_TRIED = 7 + 2 * 4  # of them
_FIRST = 2 * PER_DECADE  # 1e-6, 1e-4, ..., 1e6 come first


def best_strength(quality: Callable[[float], Any]) -> float:
    """The strength of largest quality, of equals the smallest.

    Seven strengths two decades apart are tried, then the neighbours of the best one at half the distance,
    and so on down to an eighth of a decade.
    """

    @cache
    def of(i: int) -> Any:
        return quality(STRENGTHS[i])

    def best_of(places: range) -> int:
        return max((i for i in places if 0 <= i < len(STRENGTHS)), key=of)

    step = _FIRST
    best = best_of(range(0, len(STRENGTHS), step))
    while step > 1:
        step //= 2
        best = best_of(range(best - step, best + step + 1, step))
    return STRENGTHS[best]
