"""What tuning found: one row per trial, and a table with the best without and with generated images."""

import io
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from dinv.metrics.tables import markdown, mean_and_spread
from dinv.tuning.spec import Tuning
from dinv.tuning.study import best


@dataclass(frozen=True)
class Results:
    """All that the report shows.

    Attributes:
        tuning: what was asked.
        score: title of the score.
        trials: finished trials of every arm.
        without: arms that learn from no generated image.
        accuracy: metrics/accuracy.csv of each arm's best settings, as far as that has run.
    """

    tuning: Tuning
    score: str
    trials: dict[str, list[FrozenTrial]]
    without: list[str]
    accuracy: dict[str, str]


def tidy(results: Results) -> pd.DataFrame:
    """Columns arm, trial, state, num_scores, score (the mean so far, in percent) and each parameter."""
    names = dict.fromkeys(name for space in results.tuning.arms.values() for name in space)
    rows = [
        {
            "arm": arm,
            "trial": number,
            "state": trial.state.name.lower(),
            "num_scores": len(trial.intermediate_values),
            "score": round(list(trial.intermediate_values.values())[-1], 4),
            **{name: _text(trial.params[name]) if name in trial.params else "" for name in names},
        }
        for arm, trials in results.trials.items()
        for number, trial in enumerate(trials)
    ]
    return pd.DataFrame(rows)


def table(results: Results) -> str:
    """Markdown: a line per arm, then the best without generated images and the best with them."""
    lines = [_line(arm, trials, results) for arm, trials in results.trials.items()]
    return "\n".join(filter(None, (markdown(pd.DataFrame(lines)), _headline(results))))


def _line(arm: str, trials: list[FrozenTrial], results: Results) -> dict[str, str]:
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    chosen = best(trials)
    settings = [f"{name.rpartition('.')[2]} {_text(value)}" for name, value in chosen.params.items()]
    return {
        "arm": arm,
        "trials (stopped early)": f"{len(trials)} ({pruned})",
        f"first trial, {results.score}": f"{list(trials[0].intermediate_values.values())[-1]:.2f}",
        "best": f"{chosen.value:.2f}",
        "test accuracy": _cell(_test(results, arm)),
        "its settings": ", ".join(settings),
    }


def _headline(results: Results) -> str:
    """The comparison; each side is chosen by its score, never by its test accuracy."""
    scores = {arm: best(trials).value or 0.0 for arm, trials in results.trials.items()}
    groups = {
        "without generated images": [arm for arm in scores if arm in results.without],
        "with generated images": [arm for arm in scores if arm not in results.without],
    }
    if not all(groups.values()):
        return ""
    chosen = {name: max(arms, key=lambda arm: scores[arm]) for name, arms in groups.items()}
    lines = [
        {"best": name, "arm": arm, "test accuracy": _cell(_test(results, arm))}
        for name, arm in chosen.items()
    ]
    first, second = (_test(results, arm) for arm in chosen.values())
    gain = f"{second.mean() - first.mean():+.2f}" if len(first) and len(second) else ""
    lines.append({"best": "with - without", "arm": "", "test accuracy": gain})
    return markdown(pd.DataFrame(lines))


def _test(results: Results, arm: str) -> "pd.Series[float]":
    """Top-1 accuracies on test, one per classifier seed; none before the pipeline has run."""
    if arm not in results.accuracy:
        return pd.Series(dtype=float)
    rows = pd.read_csv(io.StringIO(results.accuracy[arm]))
    return rows[(rows["arm"] == arm) & (rows["split"] == "test")]["top1_accuracy"]


def _cell(values: "pd.Series[float]") -> str:
    return mean_and_spread(values.mean(), values.std()) if len(values) else ""


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
