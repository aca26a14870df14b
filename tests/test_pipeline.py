"""The whole pipeline under DVC on a tiny model: what runs, what reruns, what survives."""

import csv
import hashlib
import io
import json
import sys
from inspect import signature
from pathlib import Path

import code_deps
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from project import ARMS, STAGES
from ruamel.yaml import YAML

from dinv.classify.confidence import label_confidence
from dinv.classify.store import load_classifiers
from dinv.images.image_set import load_image_set
from dinv.params import Params

pytestmark = pytest.mark.slow

TRAIN = {f"train@{arm}" for arm in ARMS}
ON_GENERATED = {"measure", "train@synthetic", "train@mixed", "evaluate"}
PIPELINE = YAML(typ="safe").load((tiny.ROOT / "dvc.yaml").read_text())["stages"]


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
    "data/embeddings",
    "data/generated",
    "data/reconstructions",
    "data/features",
    "data/classifiers",
    "metrics",
)


def test_first_run_leaves_a_clean_status_and_something_to_look_at(finished):
    assert "up to date" in finished.dvc("status").stdout
    assert finished.repro() == set()
    summary = json.loads((finished.root / "metrics/summary.json").read_text())
    assert set(summary["top1_accuracy"]) == set(summary["val_top1_accuracy"]) == set(ARMS)
    assert summary["gain_over_real"]["mixed"]["n"] == 2
    for name in ("table.md", "grid.png", "accuracy.csv", "confusion.csv", "inversion_loss.csv"):
        assert (finished.root / "metrics" / name).stat().st_size > 50
    confusion = list(csv.DictReader((finished.root / "metrics/confusion.csv").open()))
    assert len(confusion) == 60
    assert len(list(csv.DictReader((finished.root / "metrics/class_accuracy.csv").open()))) == 4 * 2 * 10
    sets = list(csv.DictReader((finished.root / "metrics/image_sets.csv").open()))
    assert {row["images"] for row in sets} == {"real", "reconstruction", "synthetic", "unseen"}
    assert "fashion.frechet_distance" in finished.dvc("metrics", "show").stdout
    assert "top1_accuracy.synthetic" in finished.dvc("metrics", "show").stdout
    finished.dvc("plots", "show", "-o", "plots")
    assert "grid.png" in (finished.root / "plots/index.html").read_text()


def test_every_generated_image_carries_where_it_came_from(finished):
    table = pq.read_table(finished.root / "data/generated")
    real = pq.read_table(finished.root / "data/real/train")
    label_of = dict(zip(real["id"].to_pylist(), real["label"].to_pylist(), strict=True))
    assert table.num_rows == 60
    for row in table.drop(["image"]).to_pylist():
        assert label_of[row["source_id"]] == label_of[row["partner_id"]] == row["label"]
        assert row["source_id"] != row["partner_id"]
    test_ids = set(pq.read_table(finished.root / "data/real/test")["id"].to_pylist())
    assert not test_ids & {*table["source_id"].to_pylist(), *table["partner_id"].to_pylist()}


RERUNS = [
    ({"data__seed": 1}, STAGES),
    ({"invert__lr": 0.02}, {"invert", "generate", *ON_GENERATED}),
    ({"generate__noise_std": 0.9}, {"generate", *ON_GENERATED}),
    ({"train__lr": 0.05}, {"evaluate", *TRAIN}),
    ({"measure__num_images": 20}, {"measure"}),
    ({"evaluate__confusion_arm": "real"}, {"evaluate"}),
    ({"execution__micro_batch": 7}, set()),
]
FIRST_TO_RERUN = [
    ({"model__resolution": 32}, {"invert", "generate"}),
    ({"model__revision": "abc"}, {"download", "invert", "generate"}),
    ({"generate__interpolation": 0.9}, {"generate"}),
    ({"generate__guidance_scale": 3.0}, {"generate"}),
    ({"train__seeds": [7]}, TRAIN),
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


def test_execution_does_not_change_images_or_accuracies(project):
    """Other micro-batches, same embeddings up to rounding: METHODS' invariance, end to end."""
    before = pq.read_table(project.root / "data/generated")
    project.set(execution__micro_batch=7)
    project.repro("--force", "--single-item", "invert")
    project.repro("--force", "--single-item", "generate")
    after = pq.read_table(project.root / "data/generated")
    assert before.drop(["image"]).equals(after.drop(["image"]))


def test_fresh_computation_gives_the_same_bytes(project):
    before = tree(project, *OUTPUTS)
    for path in (project.root / ".scratch").rglob("*"):
        if path.is_file():
            path.unlink()
    project.repro("--force")
    assert tree(project, *OUTPUTS) == before


KILLED = [
    ("download", "data/real"),
    ("invert", "data/embeddings"),
    ("generate", "data/generated"),
    ("measure", "data/features"),
    ("train", "data/classifiers/mixed"),
    ("evaluate", "metrics"),
]


@pytest.mark.parametrize(("stage", "out"), KILLED, ids=[stage for stage, _ in KILLED])
def test_killed_at_twenty_random_moments_the_stage_resumes_with_the_same_bytes(project, stage, out):
    script = str(tiny.ROOT / "tests/killing.py")
    if stage == "evaluate":  # leave its own files only in the folder that the script removes and compares
        for path in (project.root / "metrics").glob("image_sets.*"):
            path.unlink()
    done = project.run(sys.executable, script, stage, out, "20", PYTHONPATH=str(project.root))
    assert int(done.stdout.split()[0]) >= 10, done.stdout


def test_more_images_cost_only_what_is_new(project):
    """Three images of each of ten classes become four: ten new ones, in the last part."""
    project.dvc("repro")
    project.set(data__num_per_class=4)
    out = project.run(sys.executable, "-m", "dvc", "repro")
    assert "30 more images are known from earlier runs" in out.stdout  # embeddings
    fresh = project.run(sys.executable, "-m", "stages.invert", DINV_SCRATCH=str(project.root / "new"))
    assert "known" not in fresh.stdout


def test_more_variants_compute_only_what_is_new(project):
    """Four variants of 30 images are 120 draws: one part of 60 becomes other, so parts are of 60."""
    script = "import stages.generate as s; from stages.runner import run; s.PART_SIZE = 60; run('generate', s.main)"
    project.run(sys.executable, "-c", script)
    project.set(generate__num_images_per_embedding=4)
    again = project.run(sys.executable, "-c", script)
    assert "1 of 2 parts are already finished" in again.stdout


def test_edit_of_one_module_reruns_only_its_stages(project):
    path = project.root / "dinv/strategies/perturb.py"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert project.repro() == {"generate"}


def test_declared_code_is_exactly_what_each_stage_imports():
    for stage in PIPELINE:
        block = PIPELINE[stage].get("do", PIPELINE[stage])
        declared = sorted(d for d in block["deps"] if d.endswith(".py"))
        assert declared == code_deps.expected_code(stage), stage


def test_declared_parameters_are_exactly_what_each_stage_reads():
    for stage in PIPELINE:
        main = __import__(f"stages.{stage}", fromlist=["main"]).main
        read = {name for name in signature(main).parameters if name in Params.model_fields}
        block = PIPELINE[stage].get("do", PIPELINE[stage])
        assert {p.split(".")[0] for p in block["params"]} == read - {"execution"}, stage


def test_only_the_measuring_stages_depend_on_the_test_split():
    for stage, block in PIPELINE.items():
        deps = block.get("do", block)["deps"]
        touches = any(d in ("data", "data/real", "data/real/test", "data/real/val") for d in deps)
        assert touches == (stage in ("measure", "evaluate")), stage


def test_experiment_reruns_generate_and_later_and_show_compares(project):
    out = project.dvc("exp", "run", "-n", "more-noise", "-S", "generate.noise_std=0.7").stdout
    ran = {line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")}
    assert ran == {"generate", *ON_GENERATED}
    rows = list(csv.DictReader(io.StringIO(project.dvc("exp", "show", "--csv").stdout)))
    by_name = {row["Experiment"] or row["rev"]: row for row in rows}
    assert by_name["more-noise"]["generate.noise_std"] == "0.7"
    values = {row["top1_accuracy.synthetic"] for row in rows}
    assert len(values) >= 1 and "" not in values
    diff = project.dvc("params", "diff", "--json").stdout
    assert json.loads(diff)["params.yaml"]["generate.noise_std"]["new"] == 0.7


def test_run_cache_restores_an_earlier_setting(project):
    project.set(generate__noise_std=0.7)
    project.dvc("repro")
    project.set(generate__noise_std=tiny.PARAMS.generate.noise_std)
    out = project.dvc("repro").stdout
    assert "Stage 'generate' is cached" in out


def test_a_filter_trains_on_fewer_images_and_says_so(project):
    project.dvc("repro")
    before = project.run(sys.executable, "-m", "stages.evaluate").stdout
    assert "| synthetic | 60 |" in before and "| mixed | 90 |" in before
    images = load_image_set(project.root / "data/generated")
    teachers = [c.classifier for c in load_classifiers(project.root / "data/classifiers/real")]
    confidence = label_confidence(teachers, images, torch.device("cpu"))
    # The best image of the least sure class just stays.
    threshold = float(min(confidence[images.labels == k].max() for k in range(10))) * 0.999
    kept = int((confidence >= threshold).sum())
    project.set(train__min_confidence=f"{threshold:.12f}")
    out = project.run(sys.executable, "-m", "dvc", "repro").stdout
    assert f"{kept} of 60 generated images have confidence" in out
    assert f"| synthetic | {kept} |" in out and f"| mixed | {kept + 30} |" in out and 10 <= kept < 60


def test_mixing_by_replacement_and_loss_weights_change_the_mixed_arm_only(project):
    project.set(train__mixing="replace", train__synthetic_loss_weight=0.5)
    before = tree(project, "data/classifiers")
    out = project.dvc("repro").stdout
    changed = {
        Path(name).parent.name
        for name, found in tree(project, "data/classifiers").items()
        if found != before[name]
    }
    assert changed == {"mixed"} and out.count("2 of 2 parts are already finished") == 3
