"""What experiments leave: one tidy row per number, and tables."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dinv.experiments.spec import ARM, HELDOUT, OF_CLASSIFIERS, SIZE, Experiment, Settings
from dinv.metrics.efficiency import matching_size
from dinv.metrics.gains import paired_gains, statistics
from dinv.metrics.tables import markdown, mean_and_spread

_MEASURED = [ARM, "split", "seed", "num_images", "metric", "value"]


def tidy(place: Settings, accuracy: str, image_sets: Sequence[str], learned: str) -> pd.DataFrame:
    """The rows of one run, as texts, from the texts of its CSV files.

    Columns: what tells the runs apart, arm, split, seed, num_images, metric, value. Numbers about image
    sets have no split and no seed, those about classifiers no num_images, the last held-out loss none of
    these; `arm` then names the image set or what was learned.
    """
    of_classifiers = _read(accuracy).melt([ARM, "seed", "split"], var_name="metric", ignore_index=False)
    tables = [of_classifiers.sort_index(kind="stable")]
    for text in image_sets:
        found = _read(text)
        metric = found["features"] + "." + found["metric"]
        tables.append(found.rename(columns={"images": ARM}).assign(metric=metric))
    losses = _read(learned)
    last = losses[losses["kind"] == "heldout"].groupby("learned", sort=False).tail(1)
    tables.append(last.rename(columns={"learned": ARM, "loss": "value"}).assign(metric=HELDOUT))
    rows = pd.concat([table.reindex(columns=_MEASURED) for table in tables], ignore_index=True).fillna("")
    run = pd.DataFrame({name: _text(value) for name, value in place.items()}, index=rows.index)
    return pd.concat([run, rows], axis=1)


def _read(text: str) -> pd.DataFrame:
    """Cells stay the texts that they are."""
    return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def shown(rows: pd.DataFrame, experiment: Experiment) -> pd.DataFrame:
    """The rows that answer the question: `value` is a number, other columns stay texts, arms are in order."""
    chosen = rows[(rows["metric"] == experiment.figure.metric) & (rows["split"] == (experiment.split or ""))]
    order = [arm for arm in experiment.arms if arm in set(chosen[ARM])]
    parts = [chosen[chosen[ARM] == arm] for arm in order]
    found = pd.concat(parts) if parts else chosen
    return found.assign(value=pd.to_numeric(found["value"]))


def table(rows: pd.DataFrame, experiment: Experiment, baselines: Mapping[str, str]) -> str:
    """Markdown, a line per answer: mean and std per arm, gains over baselines paired by seed with stderr."""
    values, columns = shown(rows, experiment), experiment.columns
    answers = rows[columns].drop_duplicates() if columns else pd.DataFrame(index=[0])
    means = statistics(values, [*columns, ARM])
    pairs = {arm: baselines[arm] for arm in experiment.arms if baselines.get(arm) in experiment.arms}
    gains = statistics(paired_gains(values, pairs, _pairing(experiment)), [*columns, ARM])
    heads = {arm: (means, arm, "std") for arm in experiment.arms}
    heads |= {f"{arm} - {baseline}": (gains, arm, "stderr") for arm, baseline in pairs.items()}
    cells = [
        {
            head: _cell(numbers, (*answer, arm), spread, experiment)
            for head, (numbers, arm, spread) in heads.items()
        }
        for answer in answers.itertuples(index=False, name=None)
    ]
    return markdown(pd.concat([answers.reset_index(drop=True), pd.DataFrame(cells)], axis=1))


def _pairing(experiment: Experiment) -> list[str]:
    """Columns that a classifier and its baseline have in common."""
    return ["seed", *experiment.columns, *([experiment.pool] if experiment.pool else [])]


def _cell(numbers: pd.DataFrame, key: tuple[str, ...], spread: str, experiment: Experiment) -> str:
    index: Any = key if len(key) > 1 else key[0]
    row: Any = numbers.loc[index]
    digits = 2 if experiment.figure.metric in OF_CLASSIFIERS else 5
    return mean_and_spread(row["mean"], row[spread], digits, "+" if spread == "stderr" else "")


def efficiency_table(rows: pd.DataFrame, experiment: Experiment, baselines: Mapping[str, str]) -> str:
    """Markdown: how many real images per class train as accurate a classifier as each arm of `worth` does.

    Empty if there is no such arm, or one number of images only.
    """
    if not experiment.worth or rows[SIZE].nunique() == 1:
        return ""
    mean = statistics(shown(rows, experiment), [ARM, SIZE])["mean"]
    lines = [
        {"real images per class": size}
        | {
            f"worth this many: {arm}": _worth(mean[baselines[arm]], mean[arm, size], float(size))
            for arm in experiment.worth
        }
        for size in rows[SIZE].unique()
    ]
    return markdown(pd.DataFrame(lines))


def _worth(real: pd.Series, target: float, size: float) -> str:
    """What `matching_size` finds, and how many times the number of images at hand that is."""
    by_size = {int(str(k)): value for k, value in real.items()}
    found = matching_size(by_size, target)
    return f"more than {max(by_size)}" if found is None else f"{found:.1f} ({found / size:.1f}x)"
