"""The best without generated images against the best with them, each picked on validation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinv.classify.arms import Arm
from dinv.experiments.spec import ARM, OF_CLASSIFIERS, Experiment
from dinv.metrics.gains import half_width
from dinv.metrics.tables import markdown

_SIDES = {True: "best without", False: "best with"}


def headline_table(rows: pd.DataFrame, experiment: Experiment, arms: Mapping[str, Arm]) -> str:
    """Markdown, a line per answer; empty unless the experiment asks for it with `best`.

    In every run and for every seed, the arm with the highest validation accuracy is picked on either side:
    arms of real images only, and arms that learn from generated ones. Shown are the means of the picked
    arms' test accuracy, the mean of their difference with its 95 % t interval over runs and seeds, the same
    where `best with` is kept only if validation has it above `best without` (a difference of zero, else), and
    which arms were picked how often.
    """
    if not experiment.best:
        return ""
    picked = picks(rows, experiment, arms)
    columns = experiment.columns
    groups = picked.groupby(columns, sort=False) if columns else [((), picked)]
    return markdown(pd.DataFrame([_line(columns, key, group) for key, group in groups]))


def picks(rows: pd.DataFrame, experiment: Experiment, arms: Mapping[str, Arm]) -> pd.DataFrame:
    """What was picked: a line per run, seed and side, with columns arm, side, val and test (percent)."""
    keys = [*experiment.columns, *([experiment.pool] if experiment.pool else []), "seed"]
    accuracy = rows[(rows["metric"] == OF_CLASSIFIERS[0]) & rows[ARM].isin(experiment.arms)]
    accuracy = accuracy.assign(value=pd.to_numeric(accuracy["value"]))
    wide = accuracy.pivot(index=[*keys, ARM], columns="split", values="value").reset_index()
    wide["side"] = wide[ARM].map(lambda arm: _SIDES[arms[arm].only_real])
    # Of equally good arms the first in the order of params.yaml.
    wide["place"] = wide[ARM].map(experiment.arms.index)
    best = wide.sort_values(["val", "place"], ascending=[False, True]).drop_duplicates([*keys, "side"])
    order = {name: pd.Categorical(best[name], rows[name].unique(), ordered=True) for name in keys}
    return best.assign(**order).sort_values(keys).assign(**{k: best[k] for k in keys})


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % t interval of a mean; not a number for fewer than two values."""
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    reach = half_width(values.std(ddof=1) / np.sqrt(len(values)), len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def _line(columns: Sequence[str], key: Any, picked: pd.DataFrame) -> dict[str, str]:
    found = {side: picked[picked["side"] == side] for side in _SIDES.values()}
    difference, of_validation = (_difference(found, split) for split in ("test", "val"))
    kept = np.where(of_validation > 0, difference, 0.0)
    return {
        **dict(zip(columns, key, strict=True)),
        **{side: f"{group['test'].mean():.2f}" for side, group in found.items()},
        "difference (95 % interval)": _mean_and_interval(difference),
        "with none among the choices": _mean_and_interval(kept),
        "n": str(len(difference)),
        **{f"picked {side[5:]}": _counts(group[ARM]) for side, group in found.items()},
    }


def _difference(found: Mapping[str, pd.DataFrame], split: str) -> NDArray[np.float64]:
    """With generated images less without, a value per run and seed."""
    without, with_ = (found[side][split].to_numpy() for side in _SIDES.values())
    return with_ - without


def _mean_and_interval(differences: NDArray[np.float64]) -> str:
    low, high = interval(differences.tolist())
    return f"{differences.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def _counts(names: "pd.Series[str]") -> str:
    return ", ".join(f"{name} {n}" for name, n in names.value_counts(sort=True).items())
