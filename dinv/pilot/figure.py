"""A pilot's figure: accuracy over labelled images without and with generated ones."""

import io
from typing import Any

import numpy as np
import pandas as pd

from dinv.errors import UserError
from dinv.pilot.report import Found
from dinv.pilot.statistics import Level

try:
    import altair as alt
    import vl_convert  # noqa: F401 - altair writes PNG with it
except ImportError as error:
    raise UserError(
        f"the figure of a pilot needs {error.name}, which is not installed; pip install -e '.[figures]'"
    ) from error

SIDES = ("best without", "best with generated images")
COLORS = ("#4c78a8", "#f58518")


def figure(found: Found) -> bytes:
    """PNG: means with 95 % intervals, fitted power laws as dashed lines up to twice the most images."""
    color = alt.Color("side:N", title=None, scale=alt.Scale(domain=list(SIDES), range=list(COLORS)))
    axis = alt.Axis(values=[*(level.k for level in found.levels), 2 * found.top.k])
    scale = alt.Scale(type="log", nice=False)
    x = alt.X("k:Q", title="labelled images per class", scale=scale, axis=axis)
    y: dict[str, Any] = {"title": "accuracy on held-out labelled images, %", "scale": alt.Scale(zero=False)}
    points = alt.Chart(measured(found.levels)).encode(x=x, color=color)
    layers = points.mark_rule().encode(y=alt.Y("low:Q", **y), y2="high:Q")
    layers = layers + points.mark_point(filled=True, size=60).encode(y=alt.Y("mean:Q", **y))
    lines = fitted(found)
    if len(lines):
        layers = layers + alt.Chart(lines).mark_line(strokeDash=[4, 4]).encode(
            x=x, y=alt.Y("mean:Q", **y), color=color
        )
    picture = io.BytesIO()
    layers.properties(width=360, height=260).configure_legend(labelLimit=400).save(
        picture, format="png", scale_factor=2
    )
    return picture.getvalue()


def measured(levels: Any) -> pd.DataFrame:
    """Columns k, side, mean, low and high; the sides stand a little apart."""

    def row(level: Level, side: int) -> dict[str, Any]:
        interval = (level.without, level.with_)[side]
        return {"k": level.k * (0.98, 1.02)[side], "side": SIDES[side], **vars(interval)}

    return pd.DataFrame([row(level, side) for level in levels for side in (0, 1)])


def fitted(found: Found) -> pd.DataFrame:
    """Columns k, side and mean of both power laws; none where there is one level only."""
    ks = np.geomspace(found.levels[0].k, 2 * found.top.k, 30)
    rows = [
        {"k": k, "side": side, "mean": 100 - law(k)}
        for side, law in zip(SIDES, found.curves, strict=True)
        if law is not None
        for k in ks.tolist()
    ]
    return pd.DataFrame(rows)
