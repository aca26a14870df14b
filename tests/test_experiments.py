"""The paper's experiments: their files, what they leave, and a whole one on the tiny project."""

import csv
import io
import sys

import pytest
import tiny
import vl_convert
from PIL import Image

from dinv.errors import UserError
from dinv.experiments.results import efficiency_table, figure, figure_spec, table, tidy
from dinv.experiments.spec import Experiment, load_experiment
from dinv.metrics.efficiency import matching_size
from dinv.params import read_yaml

NAMES = sorted(p.stem for p in (tiny.ROOT / "experiments").glob("*.yaml"))
BASE = read_yaml(tiny.ROOT / "params.yaml")
SMALL = """
question: Which lambda?
set: {generate.guidance_scale: 2.0}
grid: {generate.noise_std: [0.5, 1.0]}
arms: [real, synthetic]
split: val
figure: {x: generate.noise_std}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with experiments/small.yaml."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_experiment_has_valid_runs_with_different_names(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    runs = load_experiment(name, BASE).runs()
    labels = [run.label() for run in runs]
    assert len(runs) >= 4 and len(set(labels)) == len(labels)
    assert len({str(run.settings) for run in runs}) == len(runs)


def test_runs_are_all_combinations_of_cells_and_grid():
    experiment = Experiment(
        question="?",
        set={"train.lr": 0.2},
        cells={"a": {"train.width": 8}, "b": {"train.width": 16}},
        grid={"data.seed": [0, 1]},
        split="test",
        figure={"x": "cell"},
    )
    assert experiment.columns == ["cell", "data.seed"]
    assert [run.place for run in experiment.runs()] == [
        {"cell": c, "data.seed": s} for c in "ab" for s in (0, 1)
    ]
    assert experiment.runs()[2].settings == {"train.lr": 0.2, "train.width": 16, "data.seed": 0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("noise_std", "noise_sdt", r"generate\.noise_sdt: no such parameter"),
        ("[0.5, 1.0]", "[0.5, -1.0]", r"generate\.noise_std = -1\.0"),
        ("x: generate.noise_std", "x: train.lr", r"figure: train\.lr does not differ between runs"),
        ("split: val", "split: train", r"split"),
        ("split: val", "split: val\npool: data.seed", r"pool: data\.seed is not in the grid"),
        ("question", "qestion", r"qestion"),
        ("{x:", "[x:", r"small\.yaml: "),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(folder, old, new, message):
    path = folder / "experiments/small.yaml"
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        load_experiment("small", BASE)
    assert "\n" not in str(error.value)


def test_an_unknown_experiment_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"experiments/large\.yaml: no such experiment; there are small"):
        load_experiment("large", BASE)


ACCURACY = """arm,seed,split,top1_accuracy,balanced_accuracy
real,0,val,{real},1.0
real,1,val,10.0,1.0
real,0,test,99.0,1.0
real,1,test,99.0,1.0
synthetic,0,val,14.0,1.0
synthetic,1,val,16.0,1.0
"""
SETS = """features,images,num_images,metric,value
net,synthetic,20,recall,0.5
"""


def small_rows():
    return [
        row
        for lam, real in ((0.5, 10.0), (1.0, 12.0))
        for row in tidy({"generate.noise_std": lam}, ACCURACY.format(real=real), SETS)
    ]


def test_rows_are_tidy_and_keep_classifiers_and_image_sets_apart(folder):
    rows = small_rows()
    assert len(rows) == 2 * (6 * 2 + 1)
    assert rows[0] == {
        "generate.noise_std": "0.5",
        "arm": "real",
        "split": "val",
        "seed": "0",
        "num_images": "",
        "metric": "top1_accuracy",
        "value": "10.0",
    }
    last = {k: rows[12][k] for k in ("arm", "split", "seed", "num_images", "metric", "value")}
    assert list(last.values()) == ["synthetic", "", "", "20", "net.recall", "0.5"]


def test_table_known_answer(folder):
    """Gains are paired by seed: 4 and 6; then 2 and 6."""
    lines = table(small_rows(), load_experiment("small", BASE)).splitlines()
    assert lines[0] == "| generate.noise_std | real | synthetic | synthetic - real |"
    assert lines[2:] == [
        "| 0.5 | 10.00 ± 0.00 | 15.00 ± 1.41 | +5.00 ± 1.00 |",
        "| 1.0 | 11.00 ± 1.41 | 15.00 ± 1.41 | +4.00 ± 2.00 |",
    ]


def test_pooled_runs_count_as_seeds(folder):
    text = SMALL.replace("split", "pool: generate.noise_std\nsplit").replace(
        "x: generate.noise_std", "x: arm"
    )
    (folder / "experiments/small.yaml").write_text(text)
    experiment = load_experiment("small", BASE)
    assert experiment.columns == [] and len(experiment.runs()) == 2
    (line,) = table(small_rows(), experiment).splitlines()[2:]
    assert line == "| 10.50 ± 1.00 | 15.00 ± 1.15 | +4.50 ± 0.96 |"  # gains 4, 2, 6, 6
    assert figure(small_rows(), experiment)


def test_real_images_that_match_an_arm():
    """Between 10 and 40 images accuracy rises from 60 to 80: 70 is reached at 20, half way in the logarithm."""
    real = {10: 60.0, 40: 80.0, 80: 79.0}
    assert matching_size(real, 70.0) == pytest.approx(20)
    assert matching_size(real, 80.0) == pytest.approx(40)
    assert matching_size(real, 80.1) is None and matching_size(real, 1.0) == pytest.approx(10)


def test_efficiency_table_known_answer():
    experiment = Experiment(
        question="?",
        grid={"data.num_per_class": [10, 40]},
        arms=["real", "synthetic"],
        split="test",
        figure={"x": "data.num_per_class"},
    )
    text = "arm,seed,split,top1_accuracy\nreal,0,test,{}\nsynthetic,0,test,{}\n"
    rows = [
        row
        for size, accuracies in ((10, (60.0, 70.0)), (40, (80.0, 85.0)))
        for row in tidy({"data.num_per_class": size}, text.format(*accuracies), SETS)
    ]
    lines = efficiency_table(rows, experiment).splitlines()
    assert lines[2:] == ["| 10 | 20.0 (2.0x) |", "| 40 | more than 40 |"]
    assert efficiency_table([row for row in rows if row["data.num_per_class"] == "10"], experiment) == ""


def test_figure_shows_the_numbers_of_its_split_only(folder):
    experiment = load_experiment("small", BASE)
    first = figure(small_rows(), experiment)
    assert min(Image.open(io.BytesIO(first)).size) > 300
    others = [{**r, "value": "1"} if r["split"] == "test" else r for r in small_rows()]
    assert figure(others, experiment) == first
    changed = [{**r, "value": "1"} if r["split"] == "val" else r for r in small_rows()]
    assert figure(changed, experiment) != first


def test_arms_keep_their_colors_and_numbers_their_digits(folder):
    (folder / "experiments/small.yaml").write_text(SMALL.replace("1.0]", "0.75]"))
    rows = [
        {**row, "generate.noise_std": row["generate.noise_std"].replace("1.0", "0.75")}
        for row in small_rows()
    ]
    drawn = vl_convert.vegalite_to_svg(figure_spec(rows, load_experiment("small", BASE)))
    assert ">0.5<" in drawn and ">0.75<" in drawn
    assert all(color in drawn for color in ("#4c78a8", "#e45756")), "real and synthetic"
    assert not any(color in drawn for color in ("#f58518", "#72b7b2")), "reconstruction and mixed"


COMMITTED = sorted(p.stem for p in (tiny.ROOT / "metrics/experiments").glob("*.csv"))


def test_headline_results_are_committed():
    assert "learning_curve" in COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_tables_follow_from_their_committed_numbers(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    experiment, results = load_experiment(name, BASE), tiny.ROOT / "metrics/experiments"
    rows = list(csv.DictReader((results / f"{name}.csv").open()))
    places = [{k: str(v) for k, v in run.place.items()} for run in experiment.runs()]
    assert [dict(p) for p in dict.fromkeys(tuple((k, r[k]) for k in places[0]) for r in rows)] == places
    text = "\n".join(filter(None, (table(rows, experiment), efficiency_table(rows, experiment))))
    assert (results / f"{name}.md").read_text() == text
    assert (results / f"figures/{name}.png").is_file()


@pytest.mark.slow
def test_a_whole_experiment_leaves_the_workspace_alone_and_repeats(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (project.root / "experiments").mkdir()
    (project.root / "experiments/small.yaml").write_text(SMALL)
    before = (project.root / "params.yaml").read_text()
    out = project.run(sys.executable, "-m", "dinv.experiments", "small").stdout
    assert "Which lambda?" in out and "| 0.5 | " in out
    rows = list(csv.DictReader((project.root / "metrics/experiments/small.csv").open()))
    assert {row["generate.noise_std"] for row in rows} == {"0.5", "1.0"}
    assert {row["arm"] for row in rows} == {"real", "reconstruction", "synthetic", "mixed", "unseen"}
    chosen = [r for r in rows if (r["arm"], r["metric"]) == ("synthetic", "fashion.frechet_distance")]
    found = {r["generate.noise_std"]: r["value"] for r in chosen}
    assert found["0.5"] != found["1.0"]
    assert (project.root / "params.yaml").read_text() == before
    changed = project.run("git", "status", "--short", "--untracked-files=all").stdout.split()
    assert set(changed[1::2]) <= {
        "experiments/small.yaml",
        *(f"metrics/experiments/{name}" for name in ("small.csv", "small.md", "figures/small.png")),
    }
    kept = results(project)
    project.run(sys.executable, "-m", "dinv.experiments", "small")
    assert len(kept) == 3 and results(project) == kept
    project.dvc("plots", "show", "-o", "plots")
    assert "small.png" in (project.root / "plots/index.html").read_text()


def results(project):
    folder = project.root / "metrics/experiments"
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_that_fails_keeps_the_rows_before_it(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (project.root / "experiments").mkdir()
    wrong = SMALL.replace("generate.noise_std", "train.min_confidence").replace("1.0]", "0.999]")
    (project.root / "experiments/filter.yaml").write_text(wrong.replace("0.5,", "0.0,"))
    done = project.run(sys.executable, "-m", "dinv.experiments", "filter", ok=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no generated image of class" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "dinv experiments: filter-min_confidence-0.999: dvc exp run"
    )
    rows = list(csv.DictReader((project.root / "metrics/experiments/filter.csv").open()))
    assert {row["train.min_confidence"] for row in rows} == {"0.0"}
