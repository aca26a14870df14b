"""The options of `dinv check`: when something is a finding. Imports nothing, so that help is instant."""

from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Thresholds:
    """Each with its meaning; `dinv check --help` shows them."""

    near_bits: int = _limit(24, "near duplicates: fingerprints that differ in at most so many of 256 bits")
    blur: float = _limit(
        4.5, "blurred: log sharpness so many robust standard deviations below the median of the class"
    )
    contrast: float = _limit(0.5, "single colour: every channel deviates by less, in levels of 255")
    even: float = _limit(
        0.6, "single colour too: contrast below 4 levels, and this share of adjacent pixels is equal"
    )
    small: float = _limit(0.5, "small: shorter side of the original below this times data.resolution")
    grey: float = _limit(0.5, "grey: no finding where at least this share of a task in colour is grey")
    per_class: int = _limit(10, "few images: fewer training images of a class")
    imbalance: float = _limit(10.0, "imbalance: the largest class has more than this times the images")
    doubt: float = _limit(0.5, "label: another class is more probable by more than this")
    loss: float = _limit(0.05, "autoencoder: more accuracy than this is lost, and p <= 0.05")
