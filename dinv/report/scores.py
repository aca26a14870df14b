"""Sections of the page that metrics/ has the numbers of: arms, classes, confusions, curves."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from dinv.classify.arms import Arm
from dinv.errors import UserError
from dinv.metrics.gains import statistics
from dinv.metrics.tables import mean_and_spread
from dinv.report.charts import LineChart, RowChart, bar_chart, line_chart, strip_chart
from dinv.report.files import Files, table, text
from dinv.report.verdict import Difference, differences, on_split, signed

MAX_BARS = 24  # classes that the chart shows; the table has all
NUM_CONFUSIONS = 8
SCORES = ["arm", "seed", "split", "top1_accuracy", "balanced_accuracy", "expected_calibration_error"]


@dataclass(frozen=True)
class ArmRow:
    """A line of the table of arms: texts, and None where there is no such number."""

    name: str
    learns_from: str
    num_images: str | None
    test: str
    val: str | None
    balanced: str
    calibration: str
    gain: Difference | None


@dataclass(frozen=True)
class Arms:
    """The table of arms and its chart."""

    rows: list[ArmRow]
    chart: RowChart


def arms_section(
    files: Files, scores: pd.DataFrame, arms: Mapping[str, Arm], baselines: Mapping[str, str]
) -> Arms:
    """Every arm that metrics/accuracy.csv has."""
    gains = differences(on_split(scores, "test"), baselines)
    images = num_images(files)
    val, test = (_cells(scores, split, "top1_accuracy") for split in ("val", "test"))
    balanced = _cells(scores, "test", "balanced_accuracy")
    calibration = _cells(scores, "test", "expected_calibration_error")
    rows = [
        ArmRow(
            name,
            _learns_from(arms.get(name)),
            images.get(name),
            test[name],
            val.get(name),
            balanced[name],
            calibration[name],
            gains.get((name, "")),
        )
        for name in test
    ]
    return Arms(rows, _accuracies(scores))


def _cells(scores: pd.DataFrame, split: str, metric: str) -> dict[str, str]:
    """Arm -> mean ± std (n)."""
    found = statistics(on_split(scores, split, metric), ["arm"])
    return {
        str(arm): f"{mean_and_spread(row['mean'], row['std'])} ({row['n']:.0f})"
        for arm, row in found.iterrows()
    }


def _learns_from(arm: Arm | None) -> str:
    if arm is None:
        return "not in params.yaml any more"
    if arm.only_real:
        return f"real images, {arm.learner}"
    made = arm.images.rpartition("/")[2]
    return f"{'real images and ' if arm.real else ''}{made}, {arm.learner}"


def num_images(files: Files) -> dict[str, str]:
    """Arm -> number of training images, from metrics/table.md; empty where that is missing."""
    try:
        lines = text(files, "metrics/table.md").splitlines()[2:]
    except UserError:
        return {}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1] for row in cells if len(row) > 1}


def _accuracies(scores: pd.DataFrame) -> RowChart:
    names = {"test": "test", "val": "validation"}
    points = {
        str(arm): [
            (names[split], float(value))
            for split in names
            for value in rows.loc[rows["split"] == split, "top1_accuracy"]
        ]
        for arm, rows in scores.groupby("arm", sort=False)
    }
    return strip_chart(points, "top-1 accuracy, %")


@dataclass(frozen=True)
class ClassRow:
    """One class: its test images, the baseline's accuracy, the arm's, and the difference."""

    name: str
    num_test: int | None
    baseline: float
    arm: float
    gain: Difference


@dataclass(frozen=True)
class Classes:
    """Classes of one arm from most gain to most harm."""

    arm: str
    against: str
    rows: list[ClassRow]
    chart: RowChart
    shown: int

    @property
    def gained(self) -> int:
        """How many classes gained on average."""
        return sum(row.gain.mean > 0 for row in self.rows)

    @property
    def harmed(self) -> int:
        """How many classes lost on average."""
        return sum(row.gain.mean < 0 for row in self.rows)


def classes_section(files: Files, arm: str, baseline: str) -> Classes:
    """What every class gains or loses, from metrics/class_accuracy.csv."""
    path = "metrics/class_accuracy.csv"
    rows = table(files, path, ["arm", "seed", "class", "accuracy"])
    _require_arms(files, path, rows, arm, baseline)
    gains = differences(rows.rename(columns={"accuracy": "value"}), {arm: baseline}, "class")
    means = rows.groupby(["arm", "class"])["accuracy"].mean()
    sizes = num_test_images(files, baseline)
    found = [
        ClassRow(name, sizes.get(name), float(means[baseline, name]), float(means[arm, name]), gain)
        for (_, name), gain in gains.items()
    ]
    found.sort(key=lambda row: -row.gain.mean)
    half = MAX_BARS // 2
    drawn = found if len(found) <= MAX_BARS else [*found[:half], *found[-half:]]
    bars = {row.name: (row.gain.mean, row.gain.low, row.gain.high) for row in drawn}
    chart = bar_chart(bars, f"{arm} minus {baseline}, points of test accuracy")
    return Classes(arm, baseline, found, chart, len(drawn))


def num_test_images(files: Files, arm: str) -> dict[str, int]:
    """Class -> number of test images, from the confusions of an arm; empty where these are missing."""
    try:
        rows = table(files, "metrics/confusion.csv", ["arm", "actual", "predicted", "count"])
    except UserError:
        return {}
    sums = rows[rows["arm"] == arm].groupby("actual")["count"].sum()
    return {str(name): int(count) for name, count in sums.items()}


@dataclass(frozen=True)
class Confusion:
    """How often one class is taken for another, in test images."""

    actual: str
    predicted: str
    before: int
    after: int

    @property
    def change(self) -> int:
        """More of them, or fewer."""
        return self.after - self.before

    @property
    def signed(self) -> str:
        """The change with its sign."""
        return signed(self.change, 0)


@dataclass(frozen=True)
class Confusions:
    """Those that grew most and shrank most."""

    arm: str
    against: str
    grew: list[Confusion]
    shrank: list[Confusion]
    before: int
    after: int


def confusions_section(files: Files, arm: str, baseline: str) -> Confusions:
    """Wrong predictions of the arm against those of its baseline, from metrics/confusion.csv."""
    path = "metrics/confusion.csv"
    rows = table(files, path, ["arm", "actual", "predicted", "count"])
    _require_arms(files, path, rows, arm, baseline)
    wrong = rows[rows["actual"] != rows["predicted"]]
    counts = {
        name: {(str(a), str(p)): int(n) for a, p, n in of_arm[["actual", "predicted", "count"]].values}
        for name, of_arm in wrong.groupby("arm")
    }
    old, new = counts.get(baseline, {}), counts.get(arm, {})
    found = [Confusion(*pair, old.get(pair, 0), new.get(pair, 0)) for pair in dict.fromkeys([*old, *new])]
    found.sort(key=lambda c: -c.change)
    return Confusions(
        arm,
        baseline,
        [c for c in found if c.change > 0][:NUM_CONFUSIONS],
        [c for c in reversed(found) if c.change < 0][:NUM_CONFUSIONS],
        sum(old.values()),
        sum(new.values()),
    )


def _require_arms(files: Files, path: str, rows: pd.DataFrame, *arms: str) -> None:
    for arm in arms:
        if arm not in set(rows["arm"]):
            raise UserError(f"{files.name}: {path}: has no rows of arm {arm}; run dvc repro evaluate")


def classifier_curves(files: Files) -> LineChart:
    """Training loss of every arm, from metrics/classifier_loss.csv."""
    rows = table(files, "metrics/classifier_loss.csv", ["step", "arm", "loss"])
    lines = {str(arm): _line(of_arm) for arm, of_arm in rows.groupby("arm", sort=False)}
    return line_chart(lines, "step", "cross-entropy, mean over seeds")


def learned_curves(files: Files) -> LineChart:
    """Denoising losses of what was learned, from metrics/learned_loss.csv."""
    rows = table(files, "metrics/learned_loss.csv", ["learned", "kind", "step", "loss"])
    lines = {
        f"{learned}, {kind}": _line(group)
        for (learned, kind), group in rows.groupby(["learned", "kind"], sort=False)
    }
    return line_chart(lines, "step", "denoising loss")


def _line(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    return [float(v) for v in rows["step"]], [float(v) for v in rows["loss"]]
