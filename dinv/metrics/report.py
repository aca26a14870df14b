"""From one score per classifier to the tables that people and DVC read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinv.metrics.accuracy import Summary, difference, summarize


@dataclass(frozen=True)
class Score:
    """One classifier's accuracies and calibration error on one split, in percent."""

    arm: str
    seed: int
    split: str
    top1_accuracy: float
    balanced_accuracy: float
    expected_calibration_error: float


def column(scores: Sequence[Score], arm: str, split: str, name: str = "top1_accuracy") -> list[float]:
    """One number of one arm and split, in order of seed."""
    chosen = [s for s in scores if (s.arm, s.split) == (arm, split)]
    return [getattr(s, name) for s in sorted(chosen, key=lambda s: s.seed)]


def summary(scores: Sequence[Score], arms: Sequence[str]) -> dict[str, Any]:
    """Means per arm: top-1 accuracy on test and validation, calibration error and gain over real on test."""
    by_split = {
        name: {arm: round(summarize(column(scores, arm, split)).mean, 3) for arm in arms}
        for name, split in (("top1_accuracy", "test"), ("val_top1_accuracy", "val"))
        if any(s.split == split for s in scores)
    }
    error = "expected_calibration_error"
    calibration = {arm: round(summarize(column(scores, arm, "test", error)).mean, 3) for arm in arms}
    gains = {arm: gain(scores, arm).as_dict() for arm in arms if arm != "real"}
    return {**by_split, error: calibration, "gain_over_real": gains}


def gain(scores: Sequence[Score], arm: str) -> Summary:
    """Test accuracy of an arm minus that of `real`, paired by seed."""
    return difference(column(scores, arm, "test"), column(scores, "real", "test"))


def markdown_table(scores: Sequence[Score], arms: Sequence[str], num_images: dict[str, int]) -> str:
    """One line per arm: images, test accuracy with std and n, gain over real with its stderr."""
    lines = [
        "| arm | training images | test top-1 accuracy, mean ± std (n) | gain over real ± stderr |",
        "|---|---|---|---|",
    ]
    for arm in arms:
        s = summarize(column(scores, arm, "test"))
        g = gain(scores, arm)
        spread = f" ± {s.std:.2f}" if s.std is not None else ""
        error = f" ± {g.stderr:.2f}" if g.stderr is not None else ""
        against = "" if arm == "real" else f"{g.mean:+.2f}{error}"
        lines.append(f"| {arm} | {num_images[arm]} | {s.mean:.2f}{spread} ({s.n}) | {against} |")
    return "\n".join(lines) + "\n"
