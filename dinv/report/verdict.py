"""What a run says of generated images: differences between arms, with intervals, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from dinv.metrics.gains import half_width, paired_gains, statistics

YES, NO, UNCLEAR = "Yes", "No", "Unclear"
# What the interval leaves out; the page says it beside the verdict.
NOT_COVERED = (
    "another choice of which images are labelled (data.seed)",
    "another set of generated images, or other learned embeddings (the seeds in generate and invert)",
    "other test images",
    "a better opponent: stronger augmentation or another learner may gain as much without generated images "
    "(dinv tune gives each arm the same number of trials)",
    "that several arms were compared: each interval stands alone",
)


@dataclass(frozen=True)
class Difference:
    """A mean difference in percentage points, over n pairs of the same seed."""

    mean: float
    stderr: float
    n: int

    @property
    def half_width(self) -> float | None:
        """Half of Student's 95 % interval of the mean, t_{n-1} s / sqrt(n); None of one pair."""
        return None if self.n < 2 else half_width(self.stderr, self.n)

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.half_width is None else self.mean + self.half_width

    @property
    def answer(self) -> str:
        """Yes: all of the interval is above 0; No: all below; else unclear."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return UNCLEAR
        return YES if self.low > 0 else NO

    @property
    def text(self) -> str:
        """Mean and interval."""
        if self.low is None or self.high is None:
            return f"{signed(self.mean)} (one seed, no interval)"
        return f"{signed(self.mean)} ({signed(self.low)} to {signed(self.high)})"


def differences(
    scores: pd.DataFrame, baselines: Mapping[str, str], by: str | None = None
) -> dict[tuple[str, str], Difference]:
    """(arm, group) -> its gain over its baseline, paired by seed.

    Args:
        scores: columns arm, seed, value and, if given, `by`, one row for each.
        baselines: arm -> arm.
        by: a further column, such as class, whose values are told apart; without it the group is "".
    """
    rows = scores.assign(group="" if by is None else scores[by])
    gains = statistics(
        paired_gains(rows[["arm", "seed", "group", "value"]], baselines, ["seed", "group"]), ["arm", "group"]
    )
    return {
        (str(arm), str(group)): Difference(float(row["mean"]), float(row["stderr"]), int(row["n"]))
        for (arm, group), row in gains.iterrows()
    }


@dataclass(frozen=True)
class Verdict:
    """One arm against its baseline."""

    arm: str
    baseline: str
    difference: Difference

    @property
    def answer(self) -> str:
        """Yes, No or Unclear."""
        return self.difference.answer

    @property
    def sentence(self) -> str:
        """One sentence, with the interval over classifier seeds and their number."""
        d = self.difference
        side = "above" if d.mean >= 0 else "below"
        start = f"{self.arm} is {abs(d.mean):.2f} points of test accuracy {side} {self.baseline}"
        if d.low is None or d.high is None:
            return f"{start}, by one classifier seed: how far seeds differ is not known."
        interval = f"95 % interval {signed(d.low)} to {signed(d.high)}"
        if d.answer == UNCLEAR:
            return f"{start}, but the {interval} over {d.n} classifier seeds contains 0."
        return f"{start} ({interval}, over {d.n} classifier seeds)."


def verdicts(scores: pd.DataFrame, baselines: Mapping[str, str]) -> list[Verdict]:
    """One per arm that has a baseline, in order of appearance; `scores` as metrics/accuracy.csv has them."""
    found = differences(on_split(scores, "test"), baselines)
    return [Verdict(arm, baselines[arm], difference) for (arm, _), difference in found.items()]


def on_split(scores: pd.DataFrame, split: str, metric: str = "top1_accuracy") -> pd.DataFrame:
    """One metric of one split, as arm, seed, value."""
    rows = scores[scores["split"] == split]
    return rows[["arm", "seed", metric]].rename(columns={metric: "value"})


def chosen_by_validation(scores: pd.DataFrame, found: list[Verdict]) -> Verdict | None:
    """The arm to speak of first: the highest validation accuracy, never the highest test accuracy."""
    val = on_split(scores, "val").groupby("arm")["value"].mean()
    known = [verdict for verdict in found if verdict.arm in val.index]
    return max(known, key=lambda verdict: float(val[verdict.arm])) if known else None


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, the minus as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")
