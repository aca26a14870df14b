"""What an arm gains over training on real images alone."""

from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.stats import t

from dinv.errors import UserError

LEVEL = 0.95  # of intervals


def paired_gains(scores: pd.DataFrame, baselines: Mapping[str, str], on: Sequence[str]) -> pd.DataFrame:
    """The rows of every arm that has a baseline, each with its `value` less that of the baseline.

    Args:
        scores: columns arm, value and those of `on`; one row for each of their combinations.
        baselines: arm -> arm.
        on: columns that a pair has in common, such as seed (same seed: same initial weights and order).

    Raises:
        UserError: an arm and its baseline do not have the same seeds.
    """
    keys = ["baseline", *on]
    against = scores[["arm", "value", *on]].rename(columns={"arm": "baseline", "value": "against"})
    rows = scores.assign(baseline=scores["arm"].map(baselines)).dropna(subset="baseline")
    pairs = rows.merge(against, on=keys, how="left", validate="many_to_one")
    alone = pairs[pairs["against"].isna()]
    if len(alone):
        arm, baseline, seed = alone.iloc[0][["arm", "baseline", "seed"]]
        raise UserError(f"arm {arm}: seed {seed} is not one of its baseline {baseline}; run dvc repro train")
    return pairs.assign(value=pairs["value"] - pairs["against"]).drop(columns=["baseline", "against"])


def statistics(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, sample standard deviation (n - 1), standard error and n of `value`, in order of appearance.

    The index is `by`. Of one value spread is unknown: std and stderr are not a number.
    """
    found = rows.groupby(list(by), sort=False)["value"].agg(["mean", "std", "sem", "count"])
    return found.rename(columns={"sem": "stderr", "count": "n"})


def half_width(stderr: float, n: int) -> float:
    """Half of Student's 95 % interval of a mean of n values, n >= 2, with this standard error."""
    return float(t.ppf((1 + LEVEL) / 2, n - 1)) * stderr
