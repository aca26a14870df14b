"""From right and wrong answers to the difference that generated images make, with its interval.

Nothing in here knows images, models or files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dinv.pilot.design import Design, Draw, Subset

Correct = Mapping[str, Mapping[Subset, NDArray[np.bool_]]]  # setting -> training set -> [N]
LEAST_ERROR = 0.1  # percent: what no mistake counts as where a logarithm is taken


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """The best of some settings at one level.

    Attributes:
        scores: accuracy in percent of every image that a draw scores, NaN where it does not, [J, N].
        chosen: setting of each draw.
    """

    scores: NDArray[np.float64]
    chosen: list[str]


@dataclass(frozen=True)
class Level:
    """What k labelled images of each class give without and with generated images, in percent."""

    k: int
    without: Interval
    with_: Interval
    difference: Interval
    chosen: dict[str, list[str]]


def choose(draw: Draw, settings: Sequence[str], correct: Correct, design: Design) -> str:
    """The setting that does best inside the training set, the first of equals.

    What one half has taught is asked about the other. No answer about a scored image enters.
    """

    def inner(setting: str) -> float:
        first, second = draw.halves
        asked = ((first, second), (second, first))
        return float(np.concatenate([correct[setting][a][design.rows(b)] for a, b in asked]).mean())

    return max(settings, key=inner)


def best(draws: Sequence[Draw], settings: Sequence[str], correct: Correct, design: Design) -> Side:
    """Choose a setting for every draw, and score it on the other blocks."""
    chosen = [choose(draw, settings, correct, design) for draw in draws]
    scores = np.full((len(draws), len(design.labels)), np.nan)
    for row, draw, setting in zip(scores, draws, chosen, strict=True):
        scored = design.scored(draw)
        row[scored] = 100.0 * correct[setting][draw.subset][scored]
    return Side(scores, chosen)


def levels(without: Sequence[str], with_: Sequence[str], correct: Correct, design: Design) -> list[Level]:
    """Every level of the design, fewest images first."""
    found = []
    for level in design.levels:
        draws = design.draws(level)
        sides = [best(draws, settings, correct, design) for settings in (without, with_)]
        first, second = (side.scores for side in sides)
        found.append(
            Level(
                level * design.block_size,
                interval(first),
                interval(second),
                interval(second - first),
                {"without": plain(sides[0].chosen), "with": plain(sides[1].chosen)},
            )
        )
    return found


def plain(settings: Sequence[str]) -> list[str]:
    """Learners of settings, which are named as `with cnn`."""
    return [name.rpartition(" ")[2] for name in settings]


def interval(scores: NDArray[np.float64]) -> Interval:
    """Mean over draws and images with a 95 % interval that covers other draws and other images.

    The variance of the mean is the sum of two: that of the draws' means over the number of draws, and that of
    the images' means over the number of images. This is the variance of the pigeonhole bootstrap (Owen 2007),
    which counts the noise of single answers twice: too wide rather than too narrow. That makes up for
    training sets that share images, whose draws differ too little (Nadeau and Bengio 2003). Degrees of
    freedom are Satterthwaite's.

    Args:
        scores: [J, N], NaN where a draw does not score an image; at least two draws and two images.
    """
    parts = [means[~np.isnan(means)] for means in (np.nanmean(scores, 1), np.nanmean(scores, 0))]
    mean = float(parts[0].mean())
    variances = [float(part.var(ddof=1)) / len(part) for part in parts]
    total = sum(variances)
    if total == 0:
        return Interval(mean, mean, mean)
    df = total**2 / sum(v**2 / (len(part) - 1) for v, part in zip(variances, parts, strict=True))
    half = float(stats.t.ppf(0.975, df)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class PowerLaw:
    """error(k) = a k^-b, in percent."""

    a: float
    b: float

    def __call__(self, k: float) -> float:
        """Error at k."""
        return self.a * k**-self.b


def fit_power_law(ks: Sequence[float], accuracies: Sequence[float]) -> PowerLaw | None:
    """Least squares in logarithms of errors 100 - accuracy; None for fewer than two levels."""
    if len(ks) < 2:
        return None
    errors = np.log(np.maximum(100 - np.asarray(accuracies, float), LEAST_ERROR))
    slope, offset = np.polyfit(np.log(np.asarray(ks, float)), errors, 1)
    return PowerLaw(float(np.exp(offset)), float(-slope))


def crossing(without: PowerLaw | None, with_: PowerLaw | None, largest: int) -> float | None:
    """Images per class above which generated images gain nothing, if the curves say so.

    None where the curves do not meet with the one of generated images better below, or meet further away than
    ten times the most images that were looked at.
    """
    if without is None or with_ is None or with_.b >= without.b:
        return None
    # a_w k^-b_w = a_wo k^-b_wo; with b_w < b_wo generated images are the better side below.
    k = math.exp(math.log(without.a / with_.a) / (without.b - with_.b))
    return k if 1 <= k <= 10 * largest else None


def images_to_tell(difference: Interval, num_images: int) -> int | None:
    """Labelled images with which a difference as large would be told from none; None if it is one of none.

    Intervals shrink with the square root of the number of images, if draws grow with them.
    """
    half = (difference.high - difference.low) / 2
    if difference.mean == 0:
        return None
    return math.ceil(num_images * (half / difference.mean) ** 2)
