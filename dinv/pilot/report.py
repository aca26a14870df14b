"""What a pilot found: a sentence, a table, what to run next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from dinv.estimate.measure import Range
from dinv.estimate.report import duration
from dinv.metrics.tables import markdown
from dinv.pilot.plan import Plan
from dinv.pilot.plan import as_json as plan_json
from dinv.pilot.statistics import Interval, Level, PowerLaw, crossing, fit_power_law, images_to_tell

Verdict = Literal["yes", "no", "cannot tell"]
WORTH = 1.0  # points: where all of the interval lies below, the answer is no


@dataclass(frozen=True)
class Found:
    """All that the report shows.

    Attributes:
        name: of the pilot.
        levels: fewest labelled images first.
        plan: what was done.
        price_per_hour: of the machine.
    """

    name: str
    levels: Sequence[Level]
    plan: Plan
    price_per_hour: float | None

    @property
    def top(self) -> Level:
        """Most labelled images: what the verdict is about."""
        return self.levels[-1]

    @property
    def curves(self) -> tuple[PowerLaw | None, PowerLaw | None]:
        """Error over k without and with generated images."""
        ks = [level.k for level in self.levels]
        sides = ([level.without.mean for level in self.levels], [level.with_.mean for level in self.levels])
        first, second = (fit_power_law(ks, side) for side in sides)
        return first, second

    @property
    def crossing(self) -> float | None:
        """Images per class above which nothing is to be gained."""
        return crossing(*self.curves, self.top.k)

    @property
    def verdict(self) -> Verdict:
        """By the interval of the difference with most labelled images."""
        d = self.top.difference
        if d.low > 0:
            return "yes"
        return "no" if d.high < WORTH else "cannot tell"

    @property
    def full_run(self) -> Range:
        """Seconds of the pipeline."""
        return Range(*self.plan.full_run)

    def sentence(self) -> str:
        """The verdict."""
        d = self.top.difference
        ends = f"({d.low:.1f} to {d.high:.1f})"
        alternative = f"your best alternative at {self.top.k} per class"
        if self.verdict == "yes":
            more = f"; expect nothing above {self.crossing:.0f} per class" if self.crossing else ""
            return f"generated images add {d.mean:.1f} points {ends} to {alternative}{more}"
        if self.verdict == "no":
            return f"no: {d.mean:+.1f} points {ends} against {alternative}"
        return f"cannot tell: {d.mean:+.1f} points {ends} against {alternative}"

    def favourite(self, side: str) -> str:
        """The learner that was chosen most often with most labelled images."""
        return Counter(self.top.chosen[side]).most_common(1)[0][0]

    def next(self) -> str:
        """What to do now, and what it takes."""
        whole = f"the whole run takes {duration(self.full_run)} as timed now{self._price()}"
        if self.verdict == "yes":
            return f"Run dvc repro with {self.favourite('with')} on real and generated images: {whole}."
        if self.verdict == "no":
            return (
                f"Train {self.favourite('without')} on real images, and label more: generated images are not "
                f"worth their time here; {whole}."
            )
        needed = images_to_tell(self.top.difference, self.plan.num_real)
        few = f"about {needed} labelled images would tell a difference as large; " if needed else ""
        return f"Label more images, or give the pilot more --minutes: {few}{whole}."

    def _price(self) -> str:
        if self.price_per_hour is None:
            return ""
        cost = self.full_run * (self.price_per_hour / 3600)
        return f" and costs {cost.median:.2f} ({cost.low:.2f} to {cost.high:.2f})"


def as_json(found: Found) -> dict[str, Any]:
    """Equal for equal answers; how long the pilot took is not in it."""
    without, with_ = found.curves
    cost = None if found.price_per_hour is None else found.full_run * (found.price_per_hour / 3600)
    return {
        "name": found.name,
        "sentence": found.sentence(),
        "verdict": found.verdict,
        "levels": [_level(level) for level in found.levels],
        "power_law": {
            "without": None if without is None else vars(without),
            "with": None if with_ is None else vars(with_),
        },
        "crossing": found.crossing,
        "next": found.next(),
        "next_run": {
            "command": "dvc repro" if found.verdict == "yes" else None,
            "seconds": vars(found.full_run),
            "cost": None if cost is None else vars(cost),
        },
        "plan": plan_json(found.plan),
    }


def _level(level: Level) -> dict[str, Any]:
    return {
        "k": level.k,
        "num_draws": len(level.chosen["with"]),
        "without": vars(level.without),
        "with": vars(level.with_),
        "difference": vars(level.difference),
        "chosen": {side: dict(Counter(names)) for side, names in level.chosen.items()},
    }


def table(found: Found) -> str:
    """Markdown: a line per level; accuracies in percent with 95 % intervals."""
    lines = [
        {
            "labelled images per class": str(level.k),
            "best without": _cell(level.without),
            "best with generated images": _cell(level.with_),
            "difference": _cell(level.difference, "+"),
            "chosen without": _names(level.chosen["without"]),
            "chosen with": _names(level.chosen["with"]),
        }
        for level in found.levels
    ]
    return markdown(pd.DataFrame(lines))


def _cell(x: Interval, sign: str = "") -> str:
    return f"{x.mean:{sign}.1f} ({x.low:.1f} to {x.high:.1f})"


def _names(chosen: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(chosen).most_common())
