"""Accuracy against the number of real images per class: one `dvc exp run` each, one tidy CSV, one figure.

Run it in a clone: it leaves the last experiment in the workspace.

    python benchmarks/learning_curve.py --num_per_class 5 10 20 50 --output docs/learning_curve
"""

import argparse
import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import vl_convert

from dinv.config import ARMS
from dinv.metrics.accuracy import difference, summarize

Row = dict[str, str]


def run(num_per_class: int) -> list[Row]:
    """The default pipeline with another size of the task; its rows of metrics/accuracy.csv."""
    change = f"data.num_per_class={num_per_class}"
    subprocess.run([sys.executable, "-m", "dvc", "exp", "run", "-S", change], check=True)
    with Path("metrics/accuracy.csv").open() as file:
        return [{"num_per_class": str(num_per_class), **row} for row in csv.DictReader(file)]


def save(rows: list[Row], path: Path) -> None:
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def accuracies(rows: list[Row]) -> dict[tuple[int, str], list[float]]:
    """(num_per_class, arm) -> test accuracy of each seed, in the order of the seeds."""
    found = defaultdict(list)
    for row in sorted(rows, key=lambda r: int(r["seed"])):
        if row["split"] == "test":
            found[int(row["num_per_class"]), row["arm"]].append(float(row["top1_accuracy"]))
    return found


def table(rows: list[Row]) -> str:
    """Markdown: accuracies, and gains over real paired by seed with their standard error."""
    found = accuracies(rows)
    lines = [
        "| per class | real | reconstruction | synthetic | mixed | synthetic - real | mixed - real |",
        "|" + "---|" * 7,
    ]
    for k in sorted({k for k, _ in found}):
        levels = [summarize(found[k, arm]) for arm in ARMS]
        gains = [difference(found[k, arm], found[k, "real"]) for arm in ("synthetic", "mixed")]
        cells = [f"{s.mean:.2f} ± {s.std:.2f}" for s in levels]
        cells += [f"{s.mean:+.2f} ± {s.stderr:.2f}" for s in gains]
        lines.append(f"| {k} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: list[Row]) -> bytes:
    """PNG: mean test accuracy with its standard deviation against images per class."""
    sizes = sorted({int(row["num_per_class"]) for row in rows})
    x = {
        "field": "num_per_class",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {"values": sizes},
        "title": "real images per class",
    }
    y = {
        "field": "top1_accuracy",
        "type": "quantitative",
        "title": "test accuracy, %",
        "scale": {"zero": False},
    }
    color = {"field": "arm", "type": "nominal", "sort": list(ARMS), "title": "trained on"}
    spec = {
        "data": {"values": [row for row in rows if row["split"] == "test"]},
        "width": 420,
        "height": 300,
        "encoding": {"x": x, "y": y, "color": color},
        "layer": [
            {"mark": {"type": "errorband", "extent": "stdev", "opacity": 0.2}},
            {"mark": {"type": "line", "point": True}, "encoding": {"y": {**y, "aggregate": "mean"}}},
        ],
    }
    return vl_convert.vegalite_to_png(spec, scale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num_per_class", type=int, nargs="+", required=True)
    parser.add_argument(
        "--output", type=Path, required=True, help="without suffix: .csv, .md and .png are written"
    )
    args = parser.parse_args()
    rows: list[Row] = []
    for k in args.num_per_class:
        rows += run(k)
        save(rows, args.output.with_suffix(".csv"))
    args.output.with_suffix(".md").write_text(table(rows) + "\n")
    args.output.with_suffix(".png").write_bytes(figure(rows))


if __name__ == "__main__":
    main()
