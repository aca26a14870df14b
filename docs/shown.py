"""What pages show of files. Lines between cog's marks in README.md and docs/*.md are made by these functions:
`make pages` writes them anew, and a test compares them with the files that git has committed.
"""

import ast
import io
from collections.abc import Sequence
from math import nan
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from dinv.classify.arms import Arm
from dinv.experiments.headline import headline_table, interval
from dinv.experiments.spec import Experiment, changed, load_experiment
from dinv.metrics.image_sets import UNSEEN
from dinv.metrics.tables import markdown, mean_and_spread
from dinv.params import parse_params, read_yaml

ROOT = Path(__file__).parents[1]
SHEET = {  # head of a column: number of image sets, how it is written
    "Frechet distance": ("domain.frechet_distance", ".2f"),
    "kernel distance": ("domain.kernel_distance", ".3f"),
    "precision": ("domain.precision", ".2f"),
    "recall": ("domain.recall", ".2f"),
    "density": ("domain.density", ".2f"),
    "coverage": ("domain.coverage", ".2f"),
    "share nearer train": ("domain.share_nearer_train", ".2f"),
}


def read(path: str) -> str:
    """Text of a file, named from the project's folder."""
    return (ROOT / path).read_text()


def table(path: str) -> str:
    """A file that is a Markdown table already."""
    return read(path).rstrip()


def only(text: str, *names: str) -> str:
    """Some columns of a Markdown table."""
    head, *rows = _cells(text)
    return markdown(pd.DataFrame(rows, columns=head)[list(names)]).rstrip()


def turned(text: str) -> str:
    """A Markdown table with its columns as lines."""
    head, *rows = zip(*_cells(text), strict=True)
    return markdown(pd.DataFrame(rows, columns=head)).rstrip()


def _cells(text: str) -> list[list[str]]:
    """Head and lines of a Markdown table."""
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [head, *rows]


def means(
    path: str,
    rows: Sequence[str],
    columns: str = "arm",
    value: str = "value",
    digits: int = 1,
    **where: str,
) -> str:
    """Markdown: mean (n) of a column of a CSV file, a line per combination of `rows`, in order of appearance.

    `where` keeps lines with these texts in other columns.
    """
    lines = pd.read_csv(io.StringIO(read(path)), dtype=str, keep_default_na=False)
    for name, wanted in where.items():
        lines = lines[lines[name] == wanted]
    lines = lines.assign(**{value: pd.to_numeric(lines[value])})
    order = {name: pd.Categorical(lines[name], lines[name].unique()) for name in [*rows, columns]}
    groups = lines.assign(**order).groupby([*rows, columns], observed=True)[value]
    cells = groups.agg(lambda x: f"{x.mean():.{digits}f}" + (f" ({len(x)})" if len(x) > 1 else ""))
    return markdown(cells.unstack(fill_value="").reset_index()).rstrip()


def csv_table(path: str, columns: Sequence[str]) -> str:
    """Some columns of a CSV file as they are."""
    lines = pd.read_csv(io.StringIO(read(path)), dtype=str, keep_default_na=False)
    return markdown(lines[list(columns)]).rstrip()


def number(path: str, value: str, **where: str) -> float:
    """Mean of a column over the lines of a CSV file that have these texts in other columns."""
    lines = pd.read_csv(io.StringIO(read(path)), dtype=str, keep_default_na=False)
    for name, wanted in where.items():
        lines = lines[lines[name] == wanted]
    return float(pd.to_numeric(lines[value]).mean())


def experiments() -> str:
    """Every file of experiments/ with its question."""
    names = sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml"))
    questions = {name: YAML(typ="safe").load(read(f"experiments/{name}.yaml"))["question"] for name in names}
    lines = [{"experiment": f"`{name}`", "question": question} for name, question in questions.items()]
    return markdown(pd.DataFrame(lines)).rstrip()


def code(path: str, *names: str) -> str:
    """A module, or some of its classes and functions with their decorators, as a block of code."""
    text = read(path)
    parts = [text.rstrip()]
    if names:
        found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
        parts = [_source(text, found[name]) for name in names]
    return "```python\n" + "\n\n\n".join(parts) + "\n```"


def _source(text: str, node: ast.ClassDef) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def calibration(name: str, num_pilots: int) -> str:
    """Sentences and a table of what `dinv calibrate --name NAME --pilots NUM_PILOTS` has written so far."""
    from dinv.pilot.truth import truth_of  # noqa: PLC0415 - takes seconds, and one page needs it

    pilots, runs = (
        pd.read_csv(io.StringIO(read(f"metrics/pilot/{name}-{part}.csv"))) for part in ("calibration", "runs")
    )
    truth, covered = truth_of(runs), int(pilots["covered"].sum())
    width = (pilots["high"] - pilots["low"]).mean()
    shown = pilots.assign(
        **{
            "labelled images": [f"choice {seed}" for seed in pilots["seed"]],
            "difference": [
                f"{m:+.1f} ({low:.1f} to {high:.1f})"
                for m, low, high in pilots[["mean", "low", "high"]].itertuples(index=False)
            ],
            "covers": pilots["covered"].map({True: "yes", False: "no"}),
        }
    )[["labelled images", "difference", "verdict", "covers"]]
    spread = pilots["mean"].std()
    covers = (
        f"**{covered} of {len(pilots)} intervals cover that.** They are {width:.1f} points wide on average; "
        f"the pilots' means have a standard deviation of {spread:.1f} points, so that about {4 * spread:.0f} "
        "would be enough."
    )
    if len(pilots) < num_pilots:
        covers += f" {num_pilots - len(pilots)} of {num_pilots} pilots have not been run yet."
    return (
        f"{truth.n} full runs with {pilots['k'].iloc[0]} labelled images per class: generated images add "
        f"{truth.mean:+.1f} points, standard error {truth.stderr:.1f}.\n\n{covers}\n\n"
        f"{markdown(shown).rstrip()}"
    )


def best_of(*names: str) -> str:
    """The best with generated images against the best without over the arms of several experiments, which
    have the same cells and grid.
    """
    found = [_experiment(name) for name in names]
    rows = pd.concat([_rows(name) for name in names])
    arms = {name: arm for _, arms in found for name, arm in arms.items()}
    every = [arm for experiment, _ in found for arm in experiment.arms]
    return headline_table(rows, found[0][0].model_copy(update={"arms": every}), arms).rstrip()


def sheet(name: str, cell: str) -> str:
    """Markdown: what an experiment found of each arm with generated images in one of its cells: gain in test
    accuracy, mean ± standard error over choices of labelled images, and means of all that is measured of as
    many images as most sets have. Empty where a set is smaller. The last line is real images of no arm.
    """
    experiment, arms = _experiment(name)
    wide = _accuracy(name)[cell]
    means = _of_image_sets(name, cell)
    lines = []
    for arm in [*(a for a in experiment.arms if not arms[a].only_real), UNSEEN]:
        gain, images = "", arm
        if arm in arms:
            gains, images = wide[arm] - wide["real"], arms[arm].images.rpartition("/")[2]
            gain = mean_and_spread(gains.mean(), gains.sem(), sign="+")
        found = means.loc[images] if images in means.index else {}
        numbers = {head: f"{found.get(key, nan):{digits}}" for head, (key, digits) in SHEET.items()}
        lines.append({"arm": arm, "accuracy - real": gain, **numbers})
    return markdown(pd.DataFrame(lines).replace("nan", "")).rstrip()


def orderings(name: str, claims: Sequence[tuple[str, str, str]]) -> str:
    """Markdown: what others found (text, better arm, worse arm), and the difference in test accuracy here.

    In every cell, mean ± standard error over choices of labelled images. The last column says whether
    the 95 % t interval of the mean over all cells and choices is above zero (yes), below (no), or holds it.
    """
    cells, lines = _accuracy(name), []
    for text, better, worse in claims:
        found = {cell: wide[better] - wide[worse] for cell, wide in cells.items()}
        low, high = interval(pd.concat(found.values()).tolist())
        line = {cell: mean_and_spread(gain.mean(), gain.sem(), sign="+") for cell, gain in found.items()}
        verdict = "yes" if low > 0 else "no" if high < 0 else "open"
        lines.append({"found by others": text, **line, "all": f"{low:+.1f} to {high:+.1f}", "here": verdict})
    return markdown(pd.DataFrame(lines)).rstrip()


def steps(path: str, split: str, arms: Sequence[str], heads: Sequence[str], cell: str = "") -> str:
    """Markdown: what each arm's accuracy adds to that of the one before, in points: mean ± standard error
    over choices of labelled images. A line per cell; `cell` names an experiment's only one if it has none.
    """
    lines = pd.read_csv(io.StringIO(read(path)), dtype=str, keep_default_na=False)
    lines = lines[(lines["metric"] == "top1_accuracy") & (lines["split"] == split)]
    lines = lines.assign(value=pd.to_numeric(lines["value"]), **({} if "cell" in lines else {"cell": cell}))
    found = []
    for name, of_cell in lines.groupby("cell", sort=False):
        gains = of_cell.pivot(index="data.seed", columns="arm", values="value")[list(arms)].diff(axis=1)
        texts = [mean_and_spread(gains[arm].mean(), gains[arm].sem(), sign="+") for arm in arms[1:]]
        found.append({"cell": name, **dict(zip(heads, texts, strict=True))})
    return markdown(pd.DataFrame(found)).rstrip()


def against(names: Sequence[str], split: str, baseline: str, arms: Sequence[str], cell: str) -> str:
    """Markdown: accuracy of arms less that of another, in points, for each choice of labelled images. A line
    per cell and number of labelled images, of one experiment after the other; `cell` names the only one of
    an experiment that has none.
    """
    found = []
    for name in names:
        rows = _rows(name)
        rows = rows[(rows["metric"] == "top1_accuracy") & (rows["split"] == split)]
        rows = rows.assign(**({} if "cell" in rows else {"cell": cell}))
        for (task, size), part in rows.groupby(["cell", "data.num_per_class"], sort=False):
            values = part.pivot(index="data.seed", columns="arm", values="value")
            gains = values[list(arms)].sub(values[baseline], axis=0)
            texts = {f"{arm} - {baseline}": ", ".join(f"{v:+.1f}" for v in gains[arm]) for arm in arms}
            found.append({"cell": task, "data.num_per_class": size, **texts})
    return markdown(pd.DataFrame(found)).rstrip()


def _experiment(name: str) -> tuple[Experiment, dict[str, Arm]]:
    base = read_yaml(ROOT / "params.yaml")
    experiment = load_experiment(name, base)
    return experiment, parse_params(changed(base, experiment.set, ROOT)).arms


def _rows(name: str) -> pd.DataFrame:
    rows = pd.read_csv(io.StringIO(read(f"metrics/experiments/{name}.csv")), dtype=str, keep_default_na=False)
    return rows.assign(value=pd.to_numeric(rows["value"]))


def _accuracy(name: str) -> dict[str, pd.DataFrame]:
    """By cell: test accuracy in percent, a line per choice and seed, a column per arm."""
    rows = _rows(name)
    rows = rows[(rows["metric"] == "top1_accuracy") & (rows["split"] == "test")]
    return {
        str(cell): of_cell.pivot(index=["data.seed", "seed"], columns="arm", values="value")
        for cell, of_cell in rows.groupby("cell", sort=False)
    }


def _of_image_sets(name: str, cell: str) -> pd.DataFrame:
    """Means over choices of labelled images of what was measured of most images: a line per image set."""
    rows = _rows(name)
    rows = rows[(rows["cell"] == cell) & (rows["num_images"] != "")]
    sizes = rows["num_images"].astype(int)
    rows = rows[sizes == sizes[rows["metric"] == "domain.coverage"].max()]
    return rows.groupby(["arm", "metric"])["value"].mean().unstack()


def differences(path: str, arm: str, split: str, cell: str) -> str:
    """Markdown: accuracy of an arm in every cell less that in one of them, paired by data.seed: mean ±
    standard error, and each difference.
    """
    lines = pd.read_csv(io.StringIO(read(path)), dtype=str, keep_default_na=False)
    lines = lines[(lines["metric"] == "top1_accuracy") & (lines["arm"] == arm) & (lines["split"] == split)]
    lines = lines.assign(value=pd.to_numeric(lines["value"]))
    values = lines.pivot(index="data.seed", columns="cell", values="value")[list(lines["cell"].unique())]
    gains = values.sub(values[cell], axis=0).drop(columns=cell)
    rows = [
        {
            "cell": name,
            f"{arm}, less that of {cell}": f"{gain.mean():+.2f} ± {gain.sem():.2f}",
            "by choice of labelled images": ", ".join(f"{value:+.1f}" for value in gain),
        }
        for name, gain in gains.items()
    ]
    return markdown(pd.DataFrame(rows)).rstrip()
