"""What experiments leave: one tidy row per number, a table, and a figure with error bars."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import vl_convert

from dinv.experiments.spec import Experiment, Settings, values_of
from dinv.metrics.accuracy import Summary, difference, summarize
from dinv.metrics.efficiency import matching_size
from dinv.params import ARMS

Row = dict[str, str]
ACCURACY, IMAGE_SETS = "metrics/accuracy.csv", "metrics/image_sets.csv"
SIZE = "data.num_per_class"
_KEYS = ("arm", "seed", "split")
# The same in every figure, whichever arms it shows; Vega's first four categorical colours.
_ARM_COLORS = dict(zip(ARMS, ("#4c78a8", "#f58518", "#e45756", "#72b7b2"), strict=True))


def tidy(place: Settings, accuracy: str, image_sets: str) -> list[Row]:
    """The rows of one run, from the texts of its two CSV files.

    Columns: what tells the runs apart, arm, split, seed, num_images, metric, value. Numbers about image
    sets have no split and no seed, those about classifiers no num_images.
    """
    run = {name: _text(value) for name, value in place.items()}
    rows: list[Row] = []
    for found in csv.DictReader(io.StringIO(accuracy)):
        where = {"arm": found["arm"], "split": found["split"], "seed": found["seed"], "num_images": ""}
        numbers = {k: v for k, v in found.items() if k not in _KEYS}
        rows += [{**run, **where, "metric": k, "value": v} for k, v in numbers.items()]
    for found in csv.DictReader(io.StringIO(image_sets)):
        where = {"arm": found["images"], "split": "", "seed": "", "num_images": found["num_images"]}
        metric = f"{found['features']}.{found['metric']}"
        rows.append({**run, **where, "metric": metric, "value": found["value"]})
    return rows


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _by_seed(rows: Sequence[Row], experiment: Experiment) -> dict[tuple[str, ...], list[float]]:
    """(run's values..., arm) -> the figure's metric per seed, in order of seed and of the pooled runs."""
    metric, split = experiment.figure.metric, experiment.split
    chosen = [r for r in rows if (r["metric"], r["split"]) == (metric, split)]
    found = defaultdict(list)
    for row in sorted(chosen, key=lambda r: int(r["seed"])):
        found[*(row[name] for name in experiment.columns), row["arm"]].append(float(row["value"]))
    return found


def table(rows: Sequence[Row], experiment: Experiment) -> str:
    """Markdown: one line per answer; mean and std per arm, gains over real paired by seed with stderr."""
    found, arms = _by_seed(rows, experiment), experiment.arms
    gaining = [arm for arm in arms if arm != "real"] if "real" in arms else []
    heads = [*experiment.columns, *arms, *(f"{arm} - real" for arm in gaining)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for run in dict.fromkeys(key[:-1] for key in found):
        cells = [_mean(summarize(found[*run, arm])) for arm in arms]
        cells += [_gain(difference(found[*run, arm], found[*run, "real"])) for arm in gaining]
        lines.append("| " + " | ".join([*run, *cells]) + " |")
    return "\n".join(lines) + "\n"


def efficiency_table(rows: Sequence[Row], experiment: Experiment) -> str:
    """Markdown: how many real images per class train as accurate a classifier as each arm does.

    Empty unless the experiment's one column is data.num_per_class, with several values.
    """
    if experiment.columns != [SIZE] or "real" not in experiment.arms:
        return ""
    mean = {key: summarize(values).mean for key, values in _by_seed(rows, experiment).items()}
    real = {int(size): value for (size, arm), value in mean.items() if arm == "real"}
    if len(real) == 1:
        return ""
    arms = [arm for arm in experiment.arms if arm not in ("real", "reconstruction")]
    lines = [
        "| real images per class | " + " | ".join(f"worth this many: {arm}" for arm in arms) + " |",
        "|" + "---|" * (1 + len(arms)),
    ]
    for size in real:
        worth = [matching_size(real, mean[str(size), arm]) for arm in arms]
        cells = [f"more than {max(real)}" if w is None else f"{w:.1f} ({w / size:.1f}x)" for w in worth]
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(s: Summary) -> str:
    return f"{s.mean:.2f}" if s.std is None else f"{s.mean:.2f} ± {s.std:.2f}"


def _gain(s: Summary) -> str:
    return f"{s.mean:+.2f}" if s.stderr is None else f"{s.mean:+.2f} ± {s.stderr:.2f}"


def figure(rows: Sequence[Row], experiment: Experiment) -> bytes:
    """PNG: means over seeds with bars of one standard deviation."""
    return vl_convert.vegalite_to_png(figure_spec(rows, experiment), scale=2)


def figure_spec(rows: Sequence[Row], experiment: Experiment) -> dict[str, Any]:
    """The figure in Vega-Lite."""
    drawn = experiment.figure
    chosen = [r for r in rows if (r["metric"], r["split"]) == (drawn.metric, experiment.split)]
    shown: list[dict[str, Any]] = [
        {**row, "value": float(row["value"])} for row in chosen if row["arm"] in experiment.arms
    ]
    y = {"field": "value", "type": "quantitative", "scale": {"zero": False}}
    title = f"{'test' if experiment.split == 'test' else 'validation'} {drawn.metric.replace('_', ' ')}, %"
    encoding = {"x": _x(shown, experiment), "color": _discrete(shown, drawn.color)}
    bars = {"mark": {"type": "errorbar", "extent": "stdev"}, "encoding": {"y": {**y, "title": title}}}
    mean = {"y": {**y, "aggregate": "mean", "title": title}}
    layers = [bars, {"mark": {"type": "line", "point": True}, "encoding": mean}]
    unit = {"width": 300, "height": 260, "encoding": encoding, "layer": layers}
    spec: dict[str, Any] = {"data": {"values": shown}, "config": {"legend": {"titleLimit": 400}}}
    if drawn.columns is None:
        return spec | unit
    return spec | {"facet": {"column": _discrete(shown, drawn.columns)}, "spec": unit}


def _x(shown: Sequence[dict[str, Any]], experiment: Experiment) -> dict[str, Any]:
    """The x axis: numbers to scale, names in order of appearance."""
    name, values = experiment.figure.x, values_of(shown, experiment.figure.x)
    if not all(_is_number(v) for v in values):
        return {**_discrete(shown, name), "axis": {"labelAngle": -30}}
    for row in shown:
        row[_escape(name)] = float(row[name])
    scale = {"type": "log", "nice": False} if experiment.figure.log_x else {"zero": False, "nice": False}
    axis = {"values": [float(v) for v in values], "labelExpr": "datum.value", "labelOverlap": True}
    field = {"field": _escape(name), "type": "quantitative"}
    return {**field, "scale": scale, "axis": axis, "title": name}


def _discrete(shown: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    for row in shown:
        row[_escape(name)] = row[name]
    values = values_of(shown, name)
    field = {"field": _escape(name), "type": "nominal", "sort": values, "title": name}
    if name != "arm":
        return field
    return {**field, "scale": {"domain": values, "range": [_ARM_COLORS[arm] for arm in values]}}


def _escape(name: str) -> str:
    """Vega-Lite reads a dot in a field's name as nesting."""
    return name.replace(".", "_")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
