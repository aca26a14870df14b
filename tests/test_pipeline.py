"""The whole pipeline under DVC on a tiny model: what runs, what reruns, what survives."""

import ast
import csv
import hashlib
import io
import json
import os
import re
import shutil
from inspect import signature
from pathlib import Path

import code_deps
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from killing import kill_and_resume
from project import ARMS, GENERATE, INVERT, MEASURE, STAGES, TRAIN
from ruamel.yaml import YAML

from dinv.classify.confidence import class_confidence, label_confidence
from dinv.classify.store import load_classifiers
from dinv.features.params import WATCHED
from dinv.images.image_set import load_image_set
from dinv.params import Params

pytestmark = pytest.mark.slow

PIPELINE = YAML(typ="safe").load((tiny.ROOT / "dvc.yaml").read_text())["stages"]
# What each block leads to, read off the arms: arms that learn from it, and what is measured of them.
ON = {
    name: {f"train@{arm}" for arm, a in tiny.PARAMS.arms.items() if a.images == f"data/generated/{name}"}
    for name in tiny.PARAMS.generate
}
ON_INVERSION = {*ON["inversion"], *MEASURE, "evaluate"}


@pytest.fixture
def project(finished, tmp_path):
    return finished.copy(tmp_path / "copy")


def tree(project, *folders):
    """Digest of every output file; DVC's own .gitignore lists its entries in any order."""
    found = [p for folder in folders for p in sorted((project.root / folder).rglob("*"))]
    files = [p for p in found if p.is_file() and p.name != ".gitignore"]
    return {str(p.relative_to(project.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


OUTPUTS = (
    "data/real",
    "data/learned",
    "data/curves",
    "data/generated",
    "data/previews",
    "data/features",
    "data/classifiers",
    "metrics",
)


def table(project, name):
    return list(csv.DictReader((project.root / "metrics" / name).open()))


def test_first_run_leaves_a_clean_status_and_something_to_look_at(finished, tmp_path):
    assert "up to date" in finished.dvc("status").stdout
    assert finished.repro() == set()
    summary = json.loads((finished.root / "metrics/summary.json").read_text())
    assert list(summary["top1_accuracy"]) == sorted(ARMS) == list(summary["val_top1_accuracy"])
    assert summary["gain_over_real"]["mixed"]["n"] == 2 and "real" not in summary["gain_over_real"]
    for name in ("table.md", "grid.png", "accuracy.csv"):
        assert (finished.root / "metrics" / name).stat().st_size > 50
    for arm in ARMS:
        assert sum(int(row["count"]) for row in table(finished, "confusion.csv") if row["arm"] == arm) == 60
    assert len(table(finished, "class_accuracy.csv")) == 4 * 2 * 10
    assert {row["kind"] for row in table(finished, "learned_loss.csv")} == {"training", "heldout"}
    sets = table(finished, "image_sets/domain.csv")
    assert {row["images"] for row in sets} == {"real", "reconstruction", "inversion", "unseen"}
    shown = finished.dvc("metrics", "show").stdout
    assert "inversion.frechet_distance" in shown and "top1_accuracy.synthetic" in shown
    finished.dvc("plots", "show", "-o", str(tmp_path / "plots"))
    assert "grid.png" in (tmp_path / "plots/index.html").read_text()


def test_every_generated_image_carries_where_it_came_from(finished):
    table = pq.read_table(finished.root / "data/generated/inversion")
    real = pq.read_table(finished.root / "data/real/train")
    label_of = dict(zip(real["id"].to_pylist(), real["label"].to_pylist(), strict=True))
    assert table.num_rows == 60
    for row in table.drop(["image"]).to_pylist():
        assert label_of[row["source_id"]] == label_of[row["partner_id"]] == row["label"]
        assert row["source_id"] != row["partner_id"]
    test_ids = set(pq.read_table(finished.root / "data/real/test")["id"].to_pylist())
    assert not test_ids & {*table["source_id"].to_pylist(), *table["partner_id"].to_pylist()}


# Sections, and blocks where a section has them, with what a change of one parameter in each reruns.
RERUNS = [
    ({"data__seed": 1}, STAGES),
    ({"invert__embeddings__lr": 0.02}, {*INVERT, "generate@inversion", *ON_INVERSION}),
    ({"generate__inversion__noise_std": 0.9}, {"generate@inversion", *ON_INVERSION}),
    ({"train__cnn__lr": 0.05}, {"evaluate", *TRAIN}),
    ({"arms__mixed__images": "data/generated/reconstruction"}, {"train@mixed", *MEASURE, "evaluate"}),
    ({"measure__num_images": 20}, MEASURE),
    ({"execution__micro_batch": 7}, set()),
]
FIRST_TO_RERUN = [
    ({"model__resolution": 32}, {"download", *INVERT, *GENERATE}),
    ({"model__dtype": "bfloat16"}, {*INVERT, *GENERATE}),
    ({"generate__inversion__interpolation": 0.9}, {"generate@inversion"}),
    ({"generate__inversion__guidance_scale": 3.0}, {"generate@inversion"}),
    ({"generate__reconstruction__input": "tinydata"}, {"generate@reconstruction"}),
    ({"train__cnn__seeds": [7]}, TRAIN),
    ({"execution__device": "cuda"}, set()),
]


def test_every_section_is_covered():
    changed = {next(iter(change)).split("__")[0] for change, _ in RERUNS + FIRST_TO_RERUN}
    assert changed == set(Params.model_fields)


@pytest.mark.parametrize(("change", "expected"), RERUNS, ids=[next(iter(c)) for c, _ in RERUNS])
def test_a_changed_parameter_reruns_only_what_is_downstream(project, change, expected):
    project.set(**change)
    assert project.repro() == expected
    assert "up to date" in project.dvc("status").stdout


def test_a_changed_parameter_touches_only_its_own_stages(project):
    """The stages that read the parameter; the test above shows what follows from them."""
    original = (project.root / "params.yaml").read_text()
    for change, expected in FIRST_TO_RERUN:
        project.set(**change)
        assert set(json.loads(project.dvc("status", "--json").stdout)) == expected, change
        (project.root / "params.yaml").write_text(original)


def test_dvc_sees_every_file_that_decides_a_result(project):
    """A model that is not the bundled one, feature networks, weights to start from, the images themselves."""
    networks = {*INVERT, *GENERATE, *TRAIN}
    for name, stages in (
        ("models/fashion-features/config.json", networks | MEASURE),
        ("models/pretrained/weights.safetensors", networks),
        ("tinydata/train-labels-idx1-ubyte.gz", {"download"}),
    ):
        assert changed_by(project, name) == stages, name
    shutil.copytree(project.root / "models/fashion-ldm", project.root / "elsewhere")
    project.set(model__path="elsewhere")
    assert "download" in project.repro("download")
    before = set(json.loads(project.dvc("status", "--json").stdout))
    assert before <= networks
    assert changed_by(project, "elsewhere/scheduler/scheduler_config.json") == before | {"download"}


def changed_by(project, name):
    """Stages that DVC would rerun after a change of a file, which is then taken back."""
    path = project.root / name
    original = path.read_bytes() if path.exists() else None
    path.write_bytes((original or b"") + b" ")
    changed = set(json.loads(project.dvc("status", "--json").stdout))
    path.unlink() if original is None else path.write_bytes(original)
    return changed


def test_stages_with_networks_watch_the_folders_that_these_may_lie_in():
    for stage in ("invert", "generate", "train"):
        models = {dep for dep in PIPELINE[stage]["do"]["deps"] if dep.startswith("models/")}
        assert models == set(WATCHED), stage


def test_execution_does_not_change_images_or_accuracies(project):
    """Other micro-batches, same embeddings up to rounding: METHODS' invariance, end to end."""
    before = load_image_set(project.root / "data/generated/inversion")
    project.set(execution__micro_batch=7)
    shutil.rmtree(project.root / ".scratch")
    project.repro("--force", "--single-item", "invert@embeddings")
    project.repro("--force", "--single-item", "generate@inversion")
    after = load_image_set(project.root / "data/generated/inversion")
    assert before.ids == after.ids and before.provenance == after.provenance
    # Batches of another size round differently, and inversion lets that grow a little.
    assert np.abs(before.images.astype(int) - after.images).mean() < 1


def test_fresh_computation_gives_the_same_bytes(project):
    before = tree(project, *OUTPUTS)
    for path in (project.root / ".scratch").rglob("*"):
        if path.is_file():
            path.unlink()
    project.repro("--force")
    assert tree(project, *OUTPUTS) == before


KILLED = [
    ("download", None, "data/real"),
    ("invert", "embeddings", "data/learned/embeddings"),
    ("generate", "inversion", "data/generated/inversion"),
    ("measure", "domain", "data/features/domain"),
    ("train", "mixed", "data/classifiers/mixed"),
    ("evaluate", None, "metrics"),
]
NUM_KILLS = int(os.environ.get("DINV_KILLS", "3"))


@pytest.mark.parametrize(("stage", "block", "out"), KILLED, ids=[k[0] for k in KILLED])
def test_killed_at_random_moments_the_stage_resumes_with_the_same_bytes(
    project, stage, block, out, monkeypatch
):
    monkeypatch.chdir(project.root)
    if stage == "evaluate":  # leave its own files only in the folder that is removed and compared
        shutil.rmtree("metrics/image_sets")
    kill_and_resume(stage, block, Path(out), NUM_KILLS)


def test_more_images_cost_only_what_is_new(project):
    """Three images of each of ten classes become four: ten new ones, in the last part."""
    project.dvc("repro")
    project.set(data__num_per_class=4)
    out = project.dvc("repro").stdout
    assert "30 more images are known from earlier runs" in out  # embeddings
    fresh = project.stage("invert", "embeddings", ok=True, DINV_SCRATCH=str(project.root / "new"))
    assert "known" not in fresh.stdout


def test_more_variants_compute_only_what_is_new(project):
    """Four variants of 30 images are 120 draws: one part of 60 becomes other, so parts are of 60."""
    script = (
        "import stages.generate as s, dinv.strategies.worker as w; from stages.runner import run; "
        "w.PART_SIZE = 60; run('generate', s.main, block='inversion')"
    )
    project.run("python3", "-c", script)
    project.set(generate__inversion__num_images_per_embedding=4)
    again = project.run("python3", "-c", script)
    assert "1 of 2 parts are already finished" in again.stdout


def test_an_edited_strategy_reruns_its_stage_and_computes_only_its_own_images(project):
    path = project.root / "dinv/strategies/reconstruction.py"
    path.write_text(path.read_text().replace('inputs["images"])', 'inputs["images"] * 1)'))
    out = project.dvc("repro", "--no-run-cache").stdout
    assert set(re.findall(r"^Running stage '(.+)':", out, re.M)) == GENERATE
    by_stage = dict(re.findall(r"^Running stage 'generate@([^']+)':\n(.*?)(?=^Running|\Z)", out, re.M | re.S))
    assert "1 of 1 parts are already finished" in by_stage["inversion"]
    assert "parts are already finished" not in by_stage["reconstruction"]


def test_comments_docstrings_and_reformatting_in_every_module_cost_nothing(project):
    """The stages rerun, as DVC sees other bytes, and every finished part is used again."""
    for path in [*(project.root / "dinv").rglob("*.py"), *(project.root / "stages").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        tree.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
        path.write_text("# A comment.\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n")
    before = {p: p.stat().st_mtime_ns for p in (project.root / ".scratch").rglob("*.part")}
    assert project.repro() == {"download", *INVERT, *GENERATE, *MEASURE, *TRAIN, "evaluate"}
    after = {p: p.stat().st_mtime_ns for p in (project.root / ".scratch").rglob("*.part")}
    assert after == before and len(before) >= 1 + 1 + 1 + 8


def test_declared_code_is_exactly_what_each_stage_reaches():
    for stage, block in PIPELINE.items():
        missing, superfluous = code_deps.covered(block.get("do", block)["deps"], stage)
        assert (missing, superfluous) == (set(), set()), stage


# evaluate asks these sections for the names of their blocks only, which are those of the folders it depends on.
NAMES_ONLY = {"evaluate": {"invert", "generate"}}


def test_declared_parameters_are_exactly_what_each_stage_reads():
    for stage, block in PIPELINE.items():
        main = __import__(f"stages.{stage}", fromlist=["main"]).main
        read = {name for name in signature(main).parameters if name in Params.model_fields}
        declared = {p.split(".")[0] for p in block.get("do", block)["params"]}
        assert declared == read - {"execution"} - NAMES_ONLY.get(stage, set()), stage


def test_only_the_measuring_stages_depend_on_the_test_split():
    for stage, block in PIPELINE.items():
        deps = block.get("do", block)["deps"]
        touches = any(d in ("data", "data/real", "data/real/test", "data/real/val") for d in deps)
        assert touches == (stage in ("measure", "evaluate")), stage


def test_experiment_reruns_generate_and_later_and_show_compares(project):
    out = project.dvc("exp", "run", "-n", "more-noise", "-S", "generate.inversion.noise_std=0.7").stdout
    ran = {line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")}
    assert ran == {"generate@inversion", *ON_INVERSION}
    rows = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv").stdout)))
    by_name = {row["Experiment"] or row["rev"]: row for row in rows}
    assert by_name["more-noise"]["generate.inversion.noise_std"] == "0.7"
    distance = "inversion.frechet_distance"
    column = next(name for name in by_name["more-noise"] if name.endswith(distance))
    first = by_name[project.run("git", "branch", "--show-current").stdout.strip()]
    assert float(first[column]) != float(by_name["more-noise"][column])
    diff = project.dvc("params", "diff", "--json").stdout
    assert json.loads(diff)["params.yaml"]["generate.inversion.noise_std"]["new"] == 0.7


def test_run_cache_restores_an_earlier_setting(project):
    project.set(generate__inversion__noise_std=0.7)
    project.dvc("repro")
    project.set(generate__inversion__noise_std=tiny.PARAMS.generate["inversion"].noise_std)
    out = project.dvc("repro").stdout
    assert "Stage 'generate@inversion' is cached" in out


def test_a_filter_trains_on_fewer_images_and_says_so(project):
    project.dvc("repro")
    before = project.stage("evaluate", ok=True).stdout
    assert "| synthetic | 60 |" in before and "| mixed | 90 |" in before
    teachers = load_classifiers(project.root / "data/classifiers/real")
    found = []
    for name in tiny.PARAMS.generate:
        images = load_image_set(project.root / "data/generated" / name)
        probabilities = class_confidence(teachers, images.tensor(), torch.device("cpu"))
        confidence = label_confidence(probabilities, images.labels)
        found.append((images.labels, confidence))
    # The best image of the least sure class just stays.
    threshold = float(min(c[labels == k].max() for labels, c in found for k in range(10))) * 0.999
    kept = int((found[list(tiny.PARAMS.generate).index("inversion")][1] >= threshold).sum())
    project.set(train__cnn__min_confidence=round(threshold, 12))
    out = project.dvc("repro").stdout
    assert f"{kept} of 60 generated images are kept" in out
    assert f"| synthetic | {kept} |" in out and f"| mixed | {kept + 30} |" in out and 10 <= kept < 60


def test_mixing_by_replacement_and_loss_weights_change_the_mixed_arm_only(project):
    project.set(train__cnn__mixing="replace", train__cnn__synthetic_loss_weight=0.5)
    before = tree(project, "data/classifiers")
    out = project.dvc("repro").stdout
    after = tree(project, "data/classifiers")
    changed = {Path(name).parent.name for name, found in after.items() if found != before[name]}
    assert changed == {"mixed"} and out.count("2 of 2 parts are already finished") == 3


def test_what_params_no_longer_name_is_removed_and_not_read(project):
    """A stage depends on the whole folder of classifiers; an arm that is gone must not stay a part of it."""
    project.dvc("repro")
    params = project.root / "params.yaml"
    params.write_text(re.sub(r"^  mixed: .*\n", "", params.read_text(), flags=re.M))
    out = project.dvc("repro").stdout
    assert "data/classifiers/mixed: removed" in out
    assert not (project.root / "data/classifiers/mixed").exists()
    assert "mixed" not in json.loads((project.root / "metrics/summary.json").read_text())["top1_accuracy"]
    assert "up to date" in project.dvc("status").stdout
