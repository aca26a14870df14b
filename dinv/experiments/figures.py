"""An experiment's figure. The only file that imports altair, which is optional."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dinv.errors import UserError
from dinv.experiments.results import shown
from dinv.experiments.spec import ARM, HELDOUT, OF_CLASSIFIERS, Experiment

try:
    import altair as alt
    import vl_convert  # noqa: F401 - altair writes PNG with it
except ImportError as error:
    raise UserError(
        f"figures of experiments need {error.name}, which is not installed; pip install -e '.[figures]'"
    ) from error

# An arm has the colour of its place in params.yaml, in every figure, whichever arms it shows.
PALETTE = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#eeca3b", "#b279a2", "#ff9da6", "#9d755d")


def figure(rows: pd.DataFrame, experiment: Experiment, all_arms: Sequence[str]) -> bytes:
    """PNG: means over seeds with bars of one standard deviation."""
    picture = io.BytesIO()
    chart(rows, experiment, all_arms).save(picture, format="png", scale_factor=2)
    return picture.getvalue()


def chart(rows: pd.DataFrame, experiment: Experiment, all_arms: Sequence[str]) -> Any:
    """The same as an altair chart. `all_arms` are those of params.yaml, which decide on colours."""
    drawn = experiment.figure
    # Vega-Lite reads a dot in a field's name as nesting.
    table = shown(rows, experiment).rename(columns=_field)
    color = _discrete(alt.Color, table, drawn.color, all_arms)
    value: dict[str, Any] = {"title": _title(experiment), "scale": alt.Scale(zero=False)}
    base = alt.Chart(table).encode(x=_x(table, experiment), color=color)
    bars = base.mark_errorbar(extent="stdev").encode(y=alt.Y("value:Q", **value))
    means = base.mark_line(point=True).encode(y=alt.Y("mean(value):Q", **value))
    layers = (bars + means).properties(width=300, height=260)
    if drawn.columns is not None:
        layers = layers.facet(column=_discrete(alt.Column, table, drawn.columns, all_arms))
    return layers.configure_legend(titleLimit=400)


def _title(experiment: Experiment) -> str:
    metric = experiment.figure.metric
    if metric in OF_CLASSIFIERS:
        split = "test" if experiment.split == "test" else "validation"
        return f"{split} {metric.replace('_', ' ')}, %"
    return "held-out denoising loss" if metric == HELDOUT else metric.replace("_", " ")


def _x(table: pd.DataFrame, experiment: Experiment) -> Any:
    """The x axis: numbers to scale, names in order of appearance."""
    name = experiment.figure.x
    numbers = pd.to_numeric(table[_field(name)], errors="coerce")
    if numbers.isna().any():
        return _discrete(alt.X, table, name, (), axis=alt.Axis(labelAngle=-30))
    table[_field(name)] = numbers
    log = experiment.figure.log_x
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False, nice=False)
    axis = alt.Axis(values=list(numbers.unique()), labelExpr="datum.value", labelOverlap=True)
    return alt.X(f"{_field(name)}:Q", title=name, scale=scale, axis=axis)


def _discrete(channel: Any, table: pd.DataFrame, name: str, all_arms: Sequence[str], **options: Any) -> Any:
    values = list(table[_field(name)].unique())
    if name == ARM and channel is alt.Color:
        places = [list(all_arms).index(arm) if arm in all_arms else i for i, arm in enumerate(values)]
        colors = [PALETTE[place % len(PALETTE)] for place in places]
        options["scale"] = alt.Scale(domain=values, range=colors)
    return channel(f"{_field(name)}:N", title=name, sort=values, **options)


def _field(name: str) -> str:
    return name.replace(".", "_")
