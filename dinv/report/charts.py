"""Geometry of the page's charts; the template draws them. Data come in, points in pixels go out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 560, 240, 52, 34, 8, 10
NUM_TICKS = 5


@dataclass(frozen=True)
class Tick:
    """A number on an axis, at a place."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Numbers from `low` to `high` along pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Pixel of a number, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """About five round numbers."""
        step = _round_step((self.high - self.low) / NUM_TICKS)
        first = int(np.ceil(self.low / step - 1e-9))
        last = int(np.floor(self.high / step + 1e-9))
        digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
        return [
            Tick(self.at(i * step), f"{i * step:.{digits}f}".replace("-", "−"))
            for i in range(first, last + 1)
        ]


def axis_of(values: Sequence[float], start: float, end: float, with_zero: bool = False) -> Axis:
    """An axis that holds all values, with a little room; raises ValueError where there is none."""
    low, high = min(values), max(values)
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Axis(low - room, high + room, start, end)


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, the next one up."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(power * k for k in (1, 2, 5, 10) if power * k >= step * (1 - 1e-9)))


@dataclass(frozen=True)
class Line:
    """A named line; `style` numbers its colour and dashes."""

    name: str
    style: int
    points: str
    last: float


@dataclass(frozen=True)
class LineChart:
    """Lines over a common x."""

    x: Axis
    y: Axis
    lines: list[Line]
    x_label: str
    y_label: str


def line_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> LineChart:
    """A chart of named (x, y) values."""
    every_x = [value for xs, _ in series.values() for value in xs]
    every_y = [value for _, ys in series.values() for value in ys]
    first, last = min(every_x), max(every_x)
    x = Axis(first, last if last > first else first + 1, LEFT, WIDTH - RIGHT)
    y = axis_of(every_y, HEIGHT - BOTTOM, TOP)
    lines = [
        Line(
            name, style, " ".join(f"{x.at(a)},{y.at(b)}" for a, b in zip(xs, ys, strict=True)), float(ys[-1])
        )
        for style, (name, (xs, ys)) in enumerate(series.items())
    ]
    return LineChart(x, y, lines, x_label, y_label)


@dataclass(frozen=True)
class Row:
    """A named row of a chart at height `y`: marks at x, by kind, and an interval."""

    name: str
    y: float
    value: float
    marks: list[tuple[str, float]]
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RowChart:
    """Rows over a common x; `zero` is the pixel of 0, where that is shown."""

    x: Axis
    rows: list[Row]
    zero: float | None
    height: float
    x_label: str


ROW_HEIGHT, NAME_WIDTH = 24, 150


def _rows_axis(values: Sequence[float], with_zero: bool) -> Axis:
    return axis_of(values, NAME_WIDTH, WIDTH - 16, with_zero)


def bar_chart(bars: Mapping[str, tuple[float, float | None, float | None]], x_label: str) -> RowChart:
    """Bars from 0 with intervals: name -> (value, low, high)."""
    x = _rows_axis([v for bar in bars.values() for v in bar if v is not None], with_zero=True)
    rows = [
        Row(name, TOP + (i + 0.5) * ROW_HEIGHT, x.at(value), [], _at(x, low), _at(x, high))
        for i, (name, (value, low, high)) in enumerate(bars.items())
    ]
    return RowChart(x, rows, x.at(0), TOP + len(rows) * ROW_HEIGHT, x_label)


def strip_chart(points: Mapping[str, Sequence[tuple[str, float]]], x_label: str) -> RowChart:
    """Points by row: name -> (kind, value) of each; a row's value is the mean of its first kind."""
    x = _rows_axis([value for row in points.values() for _, value in row], with_zero=False)
    rows = []
    for i, (name, row) in enumerate(points.items()):
        first = [value for kind, value in row if kind == row[0][0]]
        marks = [(kind, x.at(value)) for kind, value in row]
        rows.append(Row(name, TOP + (i + 0.5) * ROW_HEIGHT, x.at(float(np.mean(first))), marks, None, None))
    return RowChart(x, rows, None, TOP + len(rows) * ROW_HEIGHT, x_label)


def _at(axis: Axis, value: float | None) -> float | None:
    return None if value is None else axis.at(value)
