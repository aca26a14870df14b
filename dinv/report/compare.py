"""Two runs: what differs in their parameters and their accuracies."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dinv.report.verdict import Difference, differences, on_split

HERE, THERE = "this", "other"


@dataclass(frozen=True)
class Change:
    """A parameter with the values of both runs, as text; an em dash where a run has no such."""

    name: str
    here: str
    there: str


@dataclass(frozen=True)
class Changed:
    """An arm of both runs: mean test accuracies, and the difference if both have the same seeds."""

    arm: str
    here: float
    there: float
    difference: Difference | None


@dataclass(frozen=True)
class Comparison:
    """All that differs."""

    params: list[Change]
    arms: list[Changed]
    lone: list[str]

    @property
    def other_task(self) -> list[str]:
        """Parameters of data that differ: accuracies are then of other images."""
        return [change.name for change in self.params if change.name.startswith("data.")]


def compared(
    params: tuple[Mapping[str, Any], Mapping[str, Any]], scores: tuple[pd.DataFrame, pd.DataFrame]
) -> Comparison:
    """The first run of each pair is the one of the page, the second the other."""
    here, there = (dict(_flat(p)) for p in params)
    names = [name for name in dict.fromkeys([*here, *there]) if not name.startswith("execution.")]
    changes = [Change(n, here.get(n, "—"), there.get(n, "—")) for n in names if here.get(n) != there.get(n)]
    tests = [on_split(table, "test") for table in scores]
    arms = [list(dict.fromkeys(table["arm"])) for table in tests]
    both = [arm for arm in arms[0] if arm in arms[1]]
    lone = [arm for arm in dict.fromkeys([*arms[0], *arms[1]]) if arm not in both]
    return Comparison(changes, [_changed(arm, *tests) for arm in both], lone)


def _changed(arm: str, here: pd.DataFrame, there: pd.DataFrame) -> Changed:
    a, b = (table[table["arm"] == arm] for table in (here, there))
    difference = None
    if sorted(a["seed"]) == sorted(b["seed"]):
        rows = pd.concat([a.assign(arm=HERE), b.assign(arm=THERE)])
        difference = differences(rows, {HERE: THERE})[HERE, ""]
    return Changed(arm, float(a["value"].mean()), float(b["value"].mean()), difference)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """section.block.key -> value as text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, "null" if value is None else str(value)
