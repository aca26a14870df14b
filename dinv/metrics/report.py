"""From one score per classifier to the tables that people and DVC read.

Scores are a table with one row per classifier and split: arm, seed, split, top1_accuracy,
balanced_accuracy and expected_calibration_error, the last three in percent.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dinv.metrics.gains import paired_gains, statistics
from dinv.metrics.tables import markdown, mean_and_spread

DIGITS = 3


def summary(scores: pd.DataFrame, baselines: Mapping[str, str]) -> dict[str, Any]:
    """Means per arm: top-1 accuracy on test and validation, calibration error and gain over real on test."""
    test, val = scores[scores["split"] == "test"], scores[scores["split"] == "val"]
    found: dict[str, Any] = {"top1_accuracy": _means(test, "top1_accuracy")}
    if len(val):
        found["val_top1_accuracy"] = _means(val, "top1_accuracy")
    found["expected_calibration_error"] = _means(test, "expected_calibration_error")
    gains = gains_on_test(scores, baselines)
    found["gain_over_real"] = {str(arm): _rounded(row) for arm, row in gains.iterrows()}
    return found


def _means(scores: pd.DataFrame, column: str) -> dict[str, float]:
    means = scores.groupby("arm", sort=False)[column].mean().round(DIGITS)
    return {str(arm): float(mean) for arm, mean in means.items()}


def _rounded(row: pd.Series) -> dict[str, float | int | None]:
    numbers = {name: None if pd.isna(row[name]) else round(row[name], DIGITS) for name in row.index}
    return numbers | {"n": int(row["n"])}


def gains_on_test(scores: pd.DataFrame, baselines: Mapping[str, str]) -> pd.DataFrame:
    """Arm -> mean, std, stderr and n of its test accuracy minus its baseline's, paired by seed."""
    return statistics(paired_gains(_test_values(scores), baselines, ["seed"]), ["arm"])


def accuracy_table(scores: pd.DataFrame, baselines: Mapping[str, str], num_images: Mapping[str, int]) -> str:
    """Markdown, a line per arm of `num_images`: images, test accuracy with std and n, gain over real."""
    accuracy, gains = statistics(_test_values(scores), ["arm"]), gains_on_test(scores, baselines)
    lines = [
        {
            "arm": arm,
            "training images": n,
            "test top-1 accuracy, mean ± std (n)": _with_number(accuracy.loc[arm]),
            "gain over real ± stderr": _gain(gains.loc[arm]) if arm in gains.index else "",
        }
        for arm, n in num_images.items()
    ]
    return markdown(pd.DataFrame(lines))


def _test_values(scores: pd.DataFrame) -> pd.DataFrame:
    test = scores[scores["split"] == "test"]
    return test[["arm", "seed", "top1_accuracy"]].rename(columns={"top1_accuracy": "value"})


def _with_number(row: Any) -> str:
    return f"{mean_and_spread(row['mean'], row['std'])} ({row['n']:.0f})"


def _gain(row: Any) -> str:
    return mean_and_spread(row["mean"], row["stderr"], sign="+")
