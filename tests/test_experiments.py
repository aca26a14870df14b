"""The paper's experiments: their files, what they leave, and a whole one on the tiny project."""

import copy
import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
import vl_convert
from PIL import Image

from dinv.classify.arms import REAL, Arm, baselines
from dinv.cli import main
from dinv.errors import UserError
from dinv.experiments import pipeline, run
from dinv.experiments.figures import chart, figure
from dinv.experiments.headline import headline_table, interval
from dinv.experiments.results import efficiency_table, shown, table, tidy
from dinv.experiments.spec import Experiment, changed, load_experiment
from dinv.metrics.efficiency import matching_size
from dinv.params import parse_params, read_yaml
from dinv.preset import PRESETS, preset_settings

NAMES = sorted(p.stem for p in (tiny.ROOT / "experiments").glob("*.yaml"))
BASE = read_yaml(tiny.ROOT / "params.yaml")
ARMS = ["real", "probe", "synthetic", "mixed"]
BASELINES = {"synthetic": "real", "mixed": "real"}
LAMBDA = "generate.inversion.noise_std"
SMALL = """
question: Which lambda?
set: {generate.inversion.guidance_scale: 2.0}
grid: {generate.inversion.noise_std: [0.5, 1.0]}
arms: [synthetic, real]
split: val
figure: {x: generate.inversion.noise_std}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with params.yaml and experiments/small.yaml."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/small.yaml").write_text(SMALL)
    (tmp_path / "params.yaml").write_text((tiny.ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(**update):
    """The experiment above, without its file."""
    grid = {LAMBDA: [0.5, 1.0]}
    values = {"question": "?", "grid": grid, "arms": ["real", "synthetic"], "split": "val", **update}
    return Experiment(**{"figure": {"x": LAMBDA}, **values})


@pytest.mark.parametrize("name", NAMES)
def test_every_committed_experiment_has_valid_runs_with_different_names(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    runs = load_experiment(name, BASE).runs()
    labels = [run.label() for run in runs]
    assert len(runs) >= 3 and len(set(labels)) == len(labels)
    assert len({str(run.settings) for run in runs}) == len(runs)


def test_runs_are_all_combinations_of_cells_and_grid():
    experiment = small(
        set={"train.cnn.lr": 0.2},
        cells={"a": {"train.cnn.momentum": 0.8}, "b": {"train.cnn.momentum": 0.7}},
        grid={"data.seed": [0, 1]},
        figure={"x": "cell"},
    )
    assert experiment.columns == ["cell", "data.seed"]
    assert [run.place for run in experiment.runs()] == [
        {"cell": c, "data.seed": s} for c in "ab" for s in (0, 1)
    ]
    settings = {"train.cnn.lr": 0.2, "train.cnn.momentum": 0.7, "data.seed": 0}
    assert experiment.runs()[2].settings == settings


def test_arms_are_those_of_params_yaml_in_its_order(folder):
    assert load_experiment("small", BASE).arms == ["real", "synthetic"]
    (folder / "experiments/small.yaml").write_text(SMALL.replace("arms: [synthetic, real]\n", ""))
    other = copy.deepcopy(BASE)
    other["arms"] = {"late": other["arms"].pop("real"), **other["arms"]}
    assert load_experiment("small", other).arms == list(other["arms"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "n.noise_std",
            "n.noise_sdt",
            r"generate\.inversion\.noise_sdt: no such parameter \(did you mean noise_std\?\)",
        ),
        ("e.inversion.", "e.", r"generate\.guidance_scale: no such parameter"),
        ("inversion.noise_std", "other.noise_std", r"generate\.other\.noise_std: no such parameter"),
        ("[0.5, 1.0]", "[0.5, -1.0]", r"generate\.inversion\.noise_std = -1\.0"),
        ("real]", "genuine]", r"genuine: no such arm; there are real, reconstruction, synthetic, mixed"),
        ("x: generate", "x: train.cnn", r"figure: train\.cnn\.inversion\.noise_std does not differ between"),
        ("split: val", "split: train", r"split"),
        ("split: val", "", r"split: missing; write val"),
        ("noise_std}", "noise_std, metric: heldout_loss}", r"split: heldout_loss is not measured on a split"),
        ("noise_std}", "noise_std, metric: acuracy}", r"split: acuracy is not measured"),
        ("split: val", "split: val\npool: data.seed", r"pool: data\.seed is not in the grid"),
        ("split: val", "split: val\nworth: [synthetic]", r"worth: the grid must be data\.num_per_class"),
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


def test_an_unknown_metric_and_a_worth_without_a_baseline_are_refused(folder):
    path = folder / "experiments/small.yaml"
    path.write_text(
        SMALL.replace("split: val\n", "").replace("noise_std}", "noise_std, metric: dino.recall}")
    )
    with pytest.raises(
        UserError, match=r"figure\.metric = 'dino\.recall': no such metric; there are top1_acc"
    ):
        load_experiment("small", BASE)
    sizes = SMALL.replace("generate.inversion.noise_std: [0.5, 1.0]", "data.num_per_class: [5, 10]")
    sizes = sizes.replace("x: generate.inversion.noise_std", "x: data.num_per_class").replace(", real]", "]")
    path.write_text(sizes.replace("split: val", "split: val\nworth: [synthetic]"))
    with pytest.raises(UserError, match=r"worth: synthetic has no baseline of real images among synthetic"):
        load_experiment("small", BASE)


def test_what_an_experiment_sets_comes_after_what_it_extends(folder):
    path = folder / "experiments/more.yaml"
    path.write_text(
        "extends: small\n" + SMALL.replace("{generate.inversion.guidance_scale: 2.0}", "{data.seed: 7}")
    )
    (folder / "experiments/small.yaml").write_text(SMALL.replace("{gen", "{data.seed: 5, gen", 1))
    (setting, *_) = [run.settings for run in load_experiment("more", BASE).runs()]
    assert list(setting) == ["data.seed", "generate.inversion.guidance_scale", LAMBDA]
    assert setting["data.seed"] == 7 and setting["generate.inversion.guidance_scale"] == 2.0
    (folder / "experiments/most.yaml").write_text(
        "extends: more\n"
        + SMALL.replace("{generate.inversion.guidance_scale: 2.0}", "{data.num_per_class: 2}")
    )
    (setting, *_) = [run.settings for run in load_experiment("most", BASE).runs()]
    assert setting["data.seed"] == 7 and setting["data.num_per_class"] == 2
    (folder / "experiments/small.yaml").write_text("extends: most\n" + SMALL)
    with pytest.raises(
        UserError, match=r"most\.yaml: extends: most -> more -> small -> most comes to no end"
    ):
        load_experiment("most", BASE)
    path.write_text("extends: less\n" + SMALL)
    with pytest.raises(
        UserError, match=r"experiments/less\.yaml: no such experiment; there are more, most, small"
    ):
        load_experiment("more", BASE)


def test_an_unknown_experiment_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"experiments/large\.yaml: no such experiment; there are small"):
        load_experiment("large", BASE)


def own_images(root, *splits):
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(root / split / name / "a.png")
    return root


@pytest.mark.parametrize("change", ["none", "another split", "its own", "set aside in a run"])
def test_choosing_on_validation_without_validation_images_is_refused(folder, change):
    """Before any work: the table would be empty."""
    splits = ("train", "val", "test") if change == "its own" else ("train", "test")
    base = copy.deepcopy(BASE)
    root = str(own_images(folder / "images", *splits))
    base["data"] |= {"source": "image_folder", "root": root, "num_val_per_class": 0}
    text = SMALL
    if change == "another split":
        text = SMALL.replace("split: val", "split: test")
    if change == "set aside in a run":
        text = SMALL.replace("set: {", "set: {data.num_val_per_class: 1, ")
    (folder / "experiments/small.yaml").write_text(text)
    if change == "none":
        with pytest.raises(
            UserError, match=r"split: val, but data\.num_val_per_class = 0 and image_folder brings"
        ):
            load_experiment("small", base)
    else:
        assert len(load_experiment("small", base).runs()) == 2


@pytest.mark.parametrize(
    ("source", "known"),
    [("eurosat", True), ("pathmnist", True), ("cifar10", False), ("fashion_mnist", False)],
)
def test_sources_that_bring_validation_images_are_known_without_a_download(folder, source, known):
    base = copy.deepcopy(BASE)
    base["data"] |= {"source": source, "root": "data/downloads", "num_val_per_class": 0}
    if known:
        assert load_experiment("small", base).split == "val"
    else:
        with pytest.raises(UserError, match=f"{source} brings no validation images"):
            load_experiment("small", base)


def test_a_table_of_images_brings_validation_images_if_it_says_so(folder):
    root = own_images(folder / "images", "train")
    base = copy.deepcopy(BASE)
    base["data"] |= {"source": "image_csv", "root": str(root), "num_val_per_class": 0}
    rows = [f"train/{name}/a.png,{name}" for name in ("cat", "dog")]
    for i, row in enumerate(list(rows)):
        for split in ("val", "test"):
            copied = f"train/{('cat', 'dog')[i]}/{split}.png"
            (root / copied).write_bytes((root / row.split(",")[0]).read_bytes())
            rows.append(f"{copied},{row.split(',')[1]}")
    (root / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    with pytest.raises(UserError, match="image_csv brings no validation images"):
        load_experiment("small", base)
    named = [f"{r},{'val' if 'val' in r else 'test' if 'test' in r else 'train'}" for r in rows]
    (root / "labels.csv").write_text("path,label,split\n" + "\n".join(named))
    assert load_experiment("small", base).split == "val"


ACCURACY = """arm,seed,split,top1_accuracy,balanced_accuracy
real,0,val,{real},1.0
real,1,val,10.0,1.0
real,0,test,99.0,1.0
real,1,test,99.0,1.0
synthetic,0,val,14.0,1.0
synthetic,1,val,16.0,1.0
"""
SETS = """features,images,num_images,metric,value,std,num_draws
net,inversion,20,recall,0.5,0.1,10
"""
LEARNED = """learned,kind,step,loss
embeddings,training,40,0.09
embeddings,heldout,0,0.05
embeddings,heldout,80,0.04
"""


def small_rows():
    return pd.concat(
        tidy({LAMBDA: lam}, ACCURACY.format(real=real), [SETS], LEARNED)
        for lam, real in ((0.5, 10.0), (1.0, 12.0))
    )


def test_rows_are_tidy_and_keep_what_was_measured_apart():
    rows = small_rows().to_dict("records")
    assert len(rows) == 2 * (6 * 2 + 1 + 1)
    assert rows[0] == {
        LAMBDA: "0.5",
        "arm": "real",
        "split": "val",
        "seed": "0",
        "num_images": "",
        "metric": "top1_accuracy",
        "value": "10.0",
    }
    kept = [[r[k] for k in ("arm", "split", "seed", "num_images", "metric", "value")] for r in rows[11:14]]
    assert kept == [
        ["synthetic", "val", "1", "", "balanced_accuracy", "1.0"],
        ["inversion", "", "", "20", "net.recall", "0.5"],
        ["embeddings", "", "", "", "heldout_loss", "0.04"],
    ]


def test_table_known_answer():
    """Gains are paired by seed: 4 and 6; then 2 and 6."""
    lines = table(small_rows(), small(), BASELINES).splitlines()
    assert lines[0] == f"| {LAMBDA} | real | synthetic | synthetic - real |"
    assert lines[2:] == [
        "| 0.5 | 10.00 ± 0.00 | 15.00 ± 1.41 | +5.00 ± 1.00 |",
        "| 1.0 | 11.00 ± 1.41 | 15.00 ± 1.41 | +4.00 ± 2.00 |",
    ]


def test_gains_are_against_the_baseline_that_is_shown():
    only = table(small_rows(), small(arms=["synthetic"]), BASELINES)
    assert only.splitlines()[0] == f"| {LAMBDA} | synthetic |"
    another = table(small_rows(), small(), {"real": "synthetic"})
    assert another.splitlines()[0].endswith("| real - synthetic |") and "-5.00 ± 1.00" in another


def test_pooled_runs_count_as_seeds():
    experiment = small(pool=LAMBDA, figure={"x": "arm"})
    assert experiment.columns == [] and len(experiment.runs()) == 2
    (line,) = table(small_rows(), experiment, BASELINES).splitlines()[2:]
    assert line == "| 10.50 ± 1.00 | 15.00 ± 1.15 | +4.50 ± 0.96 |"  # gains 4, 2, 6, 6
    assert figure(small_rows(), experiment, ARMS)


@pytest.mark.parametrize(
    ("metric", "name", "cell"),
    [("heldout_loss", "embeddings", "0.04000"), ("net.recall", "inversion", "0.50000")],
)
def test_what_is_not_measured_on_classifiers_has_its_table_and_figure_too(metric, name, cell):
    experiment = small(arms=[name], split=None, figure={"x": LAMBDA, "metric": metric})
    lines = table(small_rows(), experiment, BASELINES).splitlines()
    assert lines[0] == f"| {LAMBDA} | {name} |" and lines[2:] == [f"| 0.5 | {cell} |", f"| 1.0 | {cell} |"]
    assert figure(small_rows(), experiment, ARMS)


def test_real_images_that_match_an_arm():
    """Between 10 and 40 images accuracy rises from 60 to 80: 70 is reached at 20, half way in the logarithm."""
    real = {10: 60.0, 40: 80.0, 80: 79.0}
    assert matching_size(real, 70.0) == pytest.approx(20)
    assert matching_size(real, 80.0) == pytest.approx(40)
    assert matching_size(real, 80.1) is None and matching_size(real, 1.0) == pytest.approx(10)


def test_efficiency_table_known_answer():
    sizes = {"grid": {"data.num_per_class": [10, 40]}, "figure": {"x": "data.num_per_class"}}
    experiment = small(**sizes, worth=["synthetic"], split="test")
    text = "arm,seed,split,top1_accuracy\nreal,0,test,{}\nsynthetic,0,test,{}\n"
    rows = pd.concat(
        tidy({"data.num_per_class": size}, text.format(*accuracies), [SETS], LEARNED)
        for size, accuracies in ((10, (60.0, 70.0)), (40, (80.0, 85.0)))
    )
    lines = efficiency_table(rows, experiment, BASELINES).splitlines()
    assert lines[0] == "| real images per class | worth this many: synthetic |"
    assert lines[2:] == ["| 10 | 20.0 (2.0x) |", "| 40 | more than 40 |"]
    assert efficiency_table(rows[rows["data.num_per_class"] == "10"], experiment, BASELINES) == ""
    assert efficiency_table(rows, small(**sizes, split="test"), BASELINES) == ""


ARMS_OF_BOTH = {
    "weak": Arm(images=REAL, real=False, learner="cnn"),
    "strong": Arm(images=REAL, real=False, learner="strong"),
    "mixed": Arm(images="data/generated/inversion", real=True, learner="cnn"),
    "mixed_strong": Arm(images="data/generated/inversion", real=True, learner="strong"),
}


def picked_on(val, test):
    """Rows of three choices of images: accuracies by arm, a list per choice."""
    text = "arm,seed,split,top1_accuracy\n"
    return pd.concat(
        tidy(
            {"data.seed": i},
            text + "".join(f"{arm},0,val,{val[arm][i]}\n{arm},0,test,{test[arm][i]}\n" for arm in val),
            [SETS],
            LEARNED,
        )
        for i in range(3)
    )


def test_the_best_of_either_side_is_picked_on_validation_and_compared_on_test():
    """Differences 3, 5 and 1: 3 +- 4.303 * 2 / sqrt(3). The best on test are others. With none among the
    choices 3, 5 and 0: 8/3 +- 4.303 * 2.517 / sqrt(3).
    """
    val = {"weak": [1, 1, 9], "strong": [2, 2, 2], "mixed": [5, 5, 5], "mixed_strong": [4, 5, 6]}
    test = {"weak": [99, 99, 70], "strong": [60, 60, 99], "mixed": [63, 65, 99], "mixed_strong": [99, 99, 71]}
    seeds = {"grid": {"data.seed": [0, 1, 2]}, "pool": "data.seed", "figure": {"x": "arm"}, "split": "test"}
    experiment = small(**seeds, arms=list(val), best=True)
    lines = headline_table(picked_on(val, test), experiment, ARMS_OF_BOTH).splitlines()
    assert lines[2] == (
        "| 63.33 | 66.33 | +3.00 (-1.97 to +7.97) | +2.67 (-3.58 to +8.92) | 3 | strong 2, weak 1 | "
        "mixed 2, mixed_strong 1 |"
    )
    assert headline_table(picked_on(val, test), small(**seeds, arms=list(val)), ARMS_OF_BOTH) == ""


def test_an_interval_of_one_value_is_unknown():
    assert all(pd.isna(end) for end in interval([1.0]))
    assert interval([1.0, 3.0]) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)


def test_an_experiment_brings_arms_and_learners_of_its_own(folder):
    text = SMALL.replace(
        "set: {", "set: {+arms.again: {images: data/real/train, real: false, learner: cnn}, "
    )
    (folder / "experiments/small.yaml").write_text(text.replace("[synthetic, real]", "[again, real]"))
    assert load_experiment("small", BASE).arms == ["real", "again"]


def test_a_setting_inside_an_added_block_stays_in_its_run():
    block = {"strategy": "reconstruction", "input": "data/real/train"}
    settings = {"+generate.again": block, "generate.again.input": "elsewhere"}
    assert changed(BASE, settings, Path("x"))["generate"]["again"]["input"] == "elsewhere"
    assert block["input"] == "data/real/train"


def test_the_best_are_compared_on_test_only(folder):
    (folder / "experiments/small.yaml").write_text(SMALL + "best: true\n")
    with pytest.raises(UserError, match="best: arms are picked on val and compared on test"):
        load_experiment("small", BASE)


def test_figure_shows_the_numbers_of_its_split_only():
    rows = small_rows()
    first = figure(rows, small(), ARMS)
    assert min(Image.open(io.BytesIO(first)).size) > 300
    changed = {
        split: rows.assign(value=rows["value"].where(rows["split"] != split, "1"))
        for split in ("test", "val")
    }
    assert figure(changed["test"], small(), ARMS) == first
    assert figure(changed["val"], small(), ARMS) != first


def test_arms_keep_the_colors_of_their_places_and_numbers_their_digits():
    rows = small_rows().replace({LAMBDA: {"1.0": "0.75"}})
    drawn = vl_convert.vegalite_to_svg(chart(rows, small(), ARMS).to_json())
    assert ">0.5<" in drawn and ">0.75<" in drawn
    assert all(color in drawn for color in ("#4c78a8", "#e45756")), "first and third"
    assert not any(color in drawn for color in ("#f58518", "#72b7b2")), "second and fourth"
    moved = vl_convert.vegalite_to_svg(chart(rows, small(), ["probe", "real", "synthetic"]).to_json())
    assert "#f58518" in moved and "#4c78a8" not in moved


def test_arms_are_drawn_in_order_of_params_yaml():
    found = shown(small_rows(), small(arms=["synthetic", "real"]))
    assert list(found["arm"].unique()) == ["synthetic", "real"]


def test_the_missing_extra_is_one_line_before_any_run(folder, monkeypatch):
    for name in ("altair", "dinv.experiments.figures", "dinv.experiments.run"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name) if name != "altair" else None
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a run was started"))
    with pytest.raises(SystemExit, match=r"^dinv experiment: .*altair.*pip install -e '\.\[figures\]'$"):
        main(["experiment", "small"])


COMMITTED = sorted(p.stem for p in (tiny.ROOT / "metrics/experiments").glob("*.csv"))


def test_headline_results_are_committed():
    assert "learning_curve" in COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_tables_follow_from_their_committed_numbers(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    preset, _, experiment_name = name.rpartition("-")  # PRESET-EXPERIMENT, or an experiment alone
    base = changed(BASE, preset_settings(BASE, [preset] if preset else []), PRESETS)
    experiment, folder = load_experiment(experiment_name, base), tiny.ROOT / "metrics/experiments"
    arms = parse_params(changed(base, experiment.set, PRESETS)).arms
    against = baselines(arms)
    rows = pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
    places = [{k: str(v) for k, v in run.place.items()} for run in experiment.runs()]
    assert rows[list(places[0])].drop_duplicates().to_dict("records") == places
    tables = (
        table(rows, experiment, against),
        efficiency_table(rows, experiment, against),
        headline_table(rows, experiment, arms),
    )
    assert (folder / f"{name}.md").read_text() == "\n".join(filter(None, tables))
    assert (folder / f"figures/{name}.png").is_file()


def test_what_an_experiment_takes_away_is_gone():
    both = {"+train.both": {"members": [{"lr": 1.0}, {"C": 1.0}]}, "train.both.members.1.C": 2.0}
    assert changed(BASE, both, Path("x"))["train"]["both"]["members"] == [{"lr": 1.0}, {"C": 2.0}]
    with pytest.raises(UserError, match=r"^x: train\.both\.members\.2\.C: no such parameter; write section"):
        changed(BASE, both | {"train.both.members.2.C": 2.0}, Path("x"))
    left = changed(BASE, {"~arms.reconstruction": None}, Path("x"))
    assert list(left["arms"]) == [arm for arm in BASE["arms"] if arm != "reconstruction"]
    with pytest.raises(UserError, match=r"~arms\.reconstructoin: no such parameter \(did you mean recon"):
        changed(BASE, {"~arms.reconstructoin": None}, Path("x"))


@pytest.mark.slow
def test_a_whole_experiment_leaves_the_workspace_alone_and_repeats(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (project.root / "experiments").mkdir()
    (project.root / "experiments/small.yaml").write_text(
        SMALL.replace("set: {", "set: {~generate.reconstruction: null, ~arms.reconstruction: null, ")
    )
    before = (project.root / "params.yaml").read_text()
    out = project.run("dinv", "experiment", "small").stdout
    assert "Which lambda?" in out and "| 0.5 | " in out
    ran = re.findall(r"^Running stage '(.+)':", out, re.M)
    assert set(ran) == {"generate@inversion", "measure@domain", "train@synthetic", "train@mixed", "evaluate"}
    rows = list(csv.DictReader((project.root / "metrics/experiments/small.csv").open()))
    assert {row[LAMBDA] for row in rows} == {"0.5", "1.0"}
    measured = {"inversion", "unseen", "embeddings"}
    assert {row["arm"] for row in rows} == {"real", "synthetic", "mixed", *measured}
    chosen = [r for r in rows if (r["arm"], r["metric"]) == ("inversion", "domain.frechet_distance")]
    found = {r[LAMBDA]: r["value"] for r in chosen}
    assert found["0.5"] != found["1.0"]
    assert (project.root / "params.yaml").read_text() == before
    changed = project.run("git", "status", "--short", "--untracked-files=all").stdout.split()
    assert set(changed[1::2]) <= {
        "experiments/small.yaml",
        *(f"metrics/experiments/{name}" for name in ("small.csv", "small.md", "figures/small.png")),
    }
    kept = left(project)
    again = project.run("dinv", "experiment", "small").stdout
    assert not re.findall(r"^Running stage '(?:download|invert|generate|train)", again, re.M)
    assert len(kept) == 3 and left(project) == kept
    project.dvc("plots", "show", "-o", "plots")
    assert "small.png" in (project.root / "plots/index.html").read_text()


def left(project):
    folder = project.root / "metrics/experiments"
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_that_fails_keeps_the_rows_before_it(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (project.root / "experiments").mkdir()
    wrong = SMALL.replace(LAMBDA, "train.cnn.min_confidence").replace("1.0]", "0.999]")
    (project.root / "experiments/filter.yaml").write_text(wrong.replace("0.5,", "0.0,"))
    done = project.run("dinv", "experiment", "filter", ok=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no generated image of class" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "dinv experiment: filter-min_confidence-0.999: dvc exp run"
    )
    rows = list(csv.DictReader((project.root / "metrics/experiments/filter.csv").open()))
    assert {row["train.cnn.min_confidence"] for row in rows} == {"0.0"}


@pytest.mark.parametrize("preset", ["satellite", "cells"])
def test_an_experiment_on_another_task_is_the_same_runs_with_its_preset(preset, folder, monkeypatch):
    shutil.copytree(tiny.ROOT / "presets", folder / "presets")
    (folder / "presets/extra.yaml").write_text("generate: {extra: {strategy: reconstruction, input: x}}\n")
    ran = {}
    monkeypatch.setattr(run, "run_pipeline", lambda revision, settings: ran.update({revision: settings}))
    monkeypatch.setattr(run, "read_results", lambda *_: pd.DataFrame())
    monkeypatch.setattr(run, "save", lambda name, *_: name)
    with pytest.raises(UserError, match=r"generate\.extra: no arm uses it"):
        run.run_experiment("small", [preset, "extra"])
    run.run_experiment("small", [preset])
    assert list(ran) == [f"{preset}-small-noise_std-{value}" for value in (0.5, 1.0)]
    for settings in ran.values():
        assert settings["data.root"] == f"data/bundled/{preset}"
        assert settings["measure.features.domain.path"] == f"models/{preset}-features"
        assert settings["generate.inversion.guidance_scale"] == 2.0


def test_what_a_preset_adds_is_marked_for_dvc(folder):
    (folder / "presets").mkdir()
    (folder / "presets/clip.yaml").write_text(
        "measure: {features: {clip: {network: clip, path: m}}, num_draws: 3}\n"
    )
    settings = preset_settings(BASE, ["clip"])
    added = {"network": "clip", "path": "m"}
    assert settings == {"+measure.features.clip": added, "measure.num_draws": 3}
    assert changed(BASE, settings, Path("x"))["measure"]["features"]["clip"] == added
    assert pipeline._literal(added) == "{network: clip, path: m}"


def test_dvc_makes_of_settings_what_experiments_do(folder):
    from dvc.utils.hydra import apply_overrides

    members = [{"lr": 1.0, "on": None}, {"C": 1.0}]
    settings = {"+train.both": {"learner": "ensemble", "members": members}, "train.both.members.0.lr": 0.5}
    path = folder / "params.yaml"
    apply_overrides(path, [pipeline._change(name, value) for name, value in settings.items()])
    assert read_yaml(path)["train"]["both"]["members"] == [{"lr": 0.5, "on": None}, {"C": 1.0}]
    assert read_yaml(path) == changed(BASE, settings, Path("x"))


@pytest.mark.parametrize(
    "text", ["a photo of a {class}", "potter's wheel, old", "a=b", "[50]", "models/x.yaml"]
)
def test_texts_reach_dvc_as_they_are(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    assert parser.parse_override(f"+a.b={pipeline._literal(text)}").value() == text
    found = parser.parse_override(f"+a.b={pipeline._literal({'prompt': text, 'n': 1})}").value()
    assert found == {"prompt": text, "n": 1}
    members = [{"prompt": text, "on": None}, {"sides": [1, True]}]
    assert parser.parse_override(f"+a.b={pipeline._literal(members)}").value() == members
