"""Findings that need no network: broken, blurred, single-coloured, small, grey; too few of a class."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dinv.intake.finding import Finding, of_picture
from dinv.intake.survey import Survey
from dinv.intake.thresholds import Thresholds

MIN_DEVIATION = 0.1  # of log sharpness: a class of equal pictures has none
MIN_OF_CLASS = 5  # pictures, to say how sharp a class is; of fewer all classes' are used


def picture_findings(survey: Survey, limits: Thresholds, resolution: int, in_colour: bool) -> list[Finding]:
    """What is wrong with single pictures.

    Args:
        resolution: side in pixels of the images that classifiers see.
        in_colour: whether data.mode is RGB.
    """
    found = [of_picture(survey, row, "broken", "", note=why) for row, why in survey.broken.items()]
    single = single_colour(survey, limits)
    found += [of_picture(survey, row, "single_colour", round(survey.contrast[row], 3)) for row in single]
    small = [int(row) for row in survey.readable if survey.shorter[row] < limits.small * resolution]
    found += [of_picture(survey, row, "small", int(survey.shorter[row])) for row in small]
    found += _blurred(survey, limits, np.setdiff1d(survey.readable, [*single, *small]))  # enlarged: no wonder
    return found + (list(_grey(survey, limits)) if in_colour else [])


def single_colour(survey: Survey, limits: Thresholds) -> list[int]:
    """Rows without contrast, and even ones with little of it: one colour after lossy compression."""
    flat = (survey.contrast < limits.contrast) | (survey.evenness >= limits.even)
    return [int(row) for row in survey.readable if flat[row]]


def _blurred(survey: Survey, limits: Thresholds, rows: NDArray[np.int64]) -> list[Finding]:
    scores = robust_scores(np.log(np.maximum(survey.sharpness[rows], 1e-12)), survey.labels[rows])
    return [
        of_picture(survey, int(row), "blurred", round(float(score), 2))
        for row, score in zip(rows, scores, strict=True)
        if score < -limits.blur
    ]


def robust_scores(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """(value - median) / (1.4826 * median absolute deviation) within each class, float64 [N].

    1.4826 makes the deviation that of a Gaussian. A class of few is compared with all.
    """
    scores = np.zeros(len(values))
    for label in np.unique(labels):
        own = labels == label
        reference = values[own] if own.sum() >= MIN_OF_CLASS else values
        middle = np.median(reference)
        deviation = 1.4826 * np.median(np.abs(reference - middle))
        scores[own] = (values[own] - middle) / max(deviation, MIN_DEVIATION)
    return scores


def _grey(survey: Survey, limits: Thresholds) -> Iterator[Finding]:
    rows = [int(row) for row in survey.readable if survey.is_grey[row]]
    if len(rows) < limits.grey * len(survey.readable):
        yield from (of_picture(survey, row, "grey", 1) for row in rows)


def class_findings(survey: Survey, limits: Thresholds) -> list[Finding]:
    """Classes with few training images, or with far fewer than the largest."""
    train = np.asarray(survey.splits) == "train"
    counts = np.bincount(survey.labels[train], minlength=len(survey.class_names))
    found = []
    for name, count in zip(survey.class_names, counts.tolist(), strict=True):
        ratio = float(counts.max()) / max(count, 1)
        if count < limits.per_class:
            found.append(Finding("few_images", count, class_name=name))
        if ratio > limits.imbalance:
            found.append(Finding("imbalance", round(ratio, 1), class_name=name))
    return found
