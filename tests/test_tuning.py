"""Tuning: equal effort, nothing that is held out is learned from, and an interrupted search ends as any other."""

import csv
import os
import re
import signal
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch

from dinv.classify import folds, generated
from dinv.classify.arms import Arm
from dinv.classify.base import Fitted
from dinv.classify.folds import Scorer, allowed_rows, cross_validation
from dinv.errors import UserError
from dinv.experiments.spec import changed
from dinv.files import digest_of
from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.params import read_yaml
from dinv.tuning.folds import has_small_validation, validation
from dinv.tuning.report import Results, table, tidy
from dinv.tuning.spec import Tuning, check, distributions, load_tuning, present
from dinv.tuning.study import Search, best, open_storage
from dinv.tuning.workshop import furnish, stages_to_run

CPU = torch.device("cpu")
BASE = read_yaml(tiny.ROOT / "params.yaml")
LR, LAMBDA, STEPS = "train.cnn.lr", "generate.inversion.noise_std", "train.cnn.num_steps"
SMALL = """
question: Which is better?
trials: 3
score: cross_validation
folds: 3
arms:
  real: &own
    train.cnn.lr: {low: 0.01, high: 0.2, log: true}
    train.cnn.mixup_alpha: [0.0, 1.0]
  mixed:
    <<: *own
    generate.inversion.noise_std: [0.5, 1.5]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with tune/small.yaml."""
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune/small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(p.stem for p in (tiny.ROOT / "tune").glob("*.yaml")))
def test_committed_files_are_valid_and_try_what_params_yaml_says(name, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    tuning = load_tuning(name, BASE)
    sections = changed(BASE, tuning.set, Path(name))
    assert all(present(space, sections) is not None for space in tuning.arms.values())
    assert any(arm.startswith("real") for arm in tuning.arms) and len(tuning.arms) > 1


def test_an_arms_space_may_take_over_anothers(folder):
    tuning = load_tuning("small", BASE)
    assert list(tuning.arms["mixed"]) == [LR, "train.cnn.mixup_alpha", LAMBDA]
    assert present(tuning.arms["mixed"], BASE) == {LR: 0.1, "train.cnn.mixup_alpha": 0.0, LAMBDA: 1.5}
    low = {**BASE, "train": {"cnn": {**BASE["train"]["cnn"], "lr": 0.5}}}
    assert present(tuning.arms["real"], low) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  mixed:", "  mixd:", r"arms\.mixd: no such arm; there are real, reconstruction, synthetic, mixed"),
        ("noise_std: [0.5", "noise_sdt: [0.5", r"generate\.inversion\.noise_sdt: no such parameter \(did you"),
        ("noise_std: [0.5", "noise_std: [-0.5", r"arms\.mixed: generate\.inversion\.noise_std = -0\.5"),
        ("    generate.inv", "    generate.recon", r"has no effect on this arm; it depends on train\.cnn, gen"),
        ("    train.cnn.mix", "    generate.inversion.noise_std: [1.0, 2.0]\n    train.cnn.mix", r"arms\.real: .*no eff"),
        ("low: 0.01", "low: 0.3", r"low 0\.3 must be below high 0\.2"),
        ("low: 0.01", "low: 0.0", r"above 0 where log is true"),
        ("high: 0.2", "hihg: 0.2", r"hihg"),
        ("folds: 3", "folds: 1", r"folds"),
        ("trials: 3", "set: {data.num_per_clas: 3}\ntrials: 3", r"data\.num_per_clas: no such parameter"),
        ("question", "qestion", r"qestion"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_before_anything_runs(folder, old, new, message):
    (folder / "tune/small.yaml").write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=r"tune/small\.yaml: .*" + message) as error:
        load_tuning("small", BASE)
    assert "\n" not in str(error.value)


def test_an_unknown_file_names_those_there_are(folder):
    with pytest.raises(UserError, match=r"tune/large\.yaml: no such file; there are small"):
        load_tuning("large", BASE)


SPACE = Tuning(
    question="?", trials=1, arms={"real": {LR: {"low": 0.0, "high": 1.0}, STEPS: [1, 2, None]}}
).arms["real"]


def scores(settings):
    """Three folds; best at lr 0.3."""
    for fold in range(3):
        yield 90 - 50 * abs(settings[LR] - 0.3) - fold - 5 * (settings[STEPS] == 2)


def search(path, score=scores, num_trials=14, seed=0):
    found = Search("real", SPACE, {LR: 0.9, STEPS: 2}, num_trials, 3, seed)
    return found.run(found.open(open_storage(path)), score, lambda n: None)


def seen(trials):
    return [(t.params, t.state.name, t.intermediate_values) for t in trials]


def test_the_same_seed_tries_the_same(tmp_path):
    first = search(tmp_path / "a.journal")
    assert seen(first) == seen(search(tmp_path / "b.journal"))
    assert seen(first) != seen(search(tmp_path / "c.journal", seed=1))
    assert first[0].params == {LR: 0.9, STEPS: 2}, "the settings at hand come first"
    assert {t.state.name for t in first} == {"COMPLETE", "PRUNED"}
    assert all(len(t.intermediate_values) == 2 for t in first if t.state.name == "PRUNED")
    assert best(first).value == max(t.value for t in first if t.state.name == "COMPLETE")


def test_finished_trials_are_not_run_again_and_more_only_append(tmp_path):
    few = search(tmp_path / "a.journal", num_trials=5)
    assert seen(search(tmp_path / "a.journal", score=None, num_trials=5)) == seen(few)
    more = search(tmp_path / "a.journal")
    assert seen(more)[:5] == seen(few) and seen(more) == seen(search(tmp_path / "b.journal"))


def search_until_killed(path, place):
    """In a process of its own, which ends by kill -9 before it gives its score number `place`."""
    left = iter(range(place - 1))

    def some(settings):
        for score in scores(settings):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            yield score

    child = os.fork()
    if child == 0:
        search(path, some)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("place", [2, 21])
def test_a_killed_search_ends_as_if_it_had_not_been(tmp_path, place):
    """In the first trial, and in one that the sampler chose."""
    assert search_until_killed(tmp_path / "a.journal", place) == -signal.SIGKILL
    assert seen(search(tmp_path / "a.journal")) == seen(search(tmp_path / "b.journal"))


def test_a_torn_line_is_cut_off(tmp_path):
    path = tmp_path / "a.journal"
    first = search(path, num_trials=3)
    with path.open("ab") as file:
        file.write(b'{"op_code": 6, "torn')
    assert seen(search(path, num_trials=5))[:3] == seen(first)
    assert seen(search(path, num_trials=5)) == seen(search(tmp_path / "b.journal", num_trials=5))


NAMES = ["a", "b"]


def save(folder, values, labels, **provenance):
    """Images whose pixels are a number; ids are r0, r1, ..."""
    images = np.asarray(values, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    ids = [f"r{i}" for i in range(len(values))]
    save_image_set(ImageSet(images, np.asarray(labels), ids, NAMES, provenance), folder)
    return ImageSetReader(folder)


@pytest.fixture
def sets(tmp_path):
    """12 real images with pixels 0 to 11; of each three generated ones with pixels 100 + source."""
    labels = [i % 2 for i in range(12)]
    real = save(tmp_path / "data/real/train", range(12), labels)
    sources = [i for i in range(12) for _ in range(3)]
    partners = [(i + 2 * v) % 12 for i in range(12) for v in range(3)]
    made = save(
        tmp_path / "data/generated/inversion",
        [100 + i for i in sources],
        [i % 2 for i in sources],
        source_id=[f"r{i}" for i in sources],
        partner_id=[f"r{i}" for i in partners],
    )
    return real, made, list(zip(sources, partners, strict=True))


class Recorder:
    """A learner that says what it was shown and knows nothing."""

    shown: ClassVar[list] = []

    @classmethod
    def fit(cls, data, params, seed, device, advance):
        cls.shown.append([source.images[:, 0, 0, 0].tolist() for source in data.sources])
        return Fitted({}, {}, [])

    @staticmethod
    def load(tensors, build, device):
        return lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "shown", [])
    monkeypatch.setattr(folds, "LEARNERS", {"cnn": Recorder})
    monkeypatch.setattr("dinv.classify.store.LEARNERS", {"cnn": Recorder})
    return Recorder


def test_folds_are_stratified_and_differ_between_repeats(sets):
    found = cross_validation(sets[0], 3, 2, seed=0)
    assert len(found) == 6 and len({f.seed for f in found}) == 6
    for fold in found:
        assert np.bincount(sets[0].labels[fold.rows]).tolist() == [2, 2]
        assert sorted([*fold.train, *fold.rows]) == list(range(12))
    for repeat in (found[:3], found[3:]):
        assert sorted(row for f in repeat for row in f.rows) == list(range(12))
    assert {tuple(f.rows) for f in found[:3]} != {tuple(f.rows) for f in found[3:]}
    assert len(cross_validation(sets[0], 50, 1, seed=0)) == 6, "a class has six images"
    again = cross_validation(sets[0], 3, 2, seed=0)
    assert [f.rows.tolist() for f in again] == [f.rows.tolist() for f in found]


@pytest.mark.parametrize("mixes", [False, True])
def test_held_out_images_never_train_nor_do_those_generated_from_them(sets, tmp_path, recorder, mixes):
    real, _, made_of = sets
    arm = Arm(images="data/generated/inversion", real=mixes, learner="cnn")
    found = cross_validation(real, 3, 1, seed=0)
    values = list(Scorer(tmp_path, arm, tiny.train_params(), CPU).scores(found))
    assert values == [50.0, 50.0, 50.0] and len(recorder.shown) == 3
    for fold, shown in zip(found, recorder.shown, strict=True):
        held = set(fold.rows.tolist())
        allowed = [100 + s for s, p in made_of if s not in held and p not in held]
        assert shown[-1] == allowed and len(allowed) < 3 * len(fold.train)
        assert len(shown) == 1 + mixes and (not mixes or shown[0] == fold.train.tolist())


def test_a_teacher_of_the_filter_has_not_seen_them_either(sets, tmp_path, recorder, monkeypatch):
    monkeypatch.setattr(generated, "confident_rows", lambda confidence, *rest: np.arange(len(confidence))[:5])
    arm = Arm(images="data/generated/inversion", real=False, learner="cnn")
    (fold, *_) = cross_validation(sets[0], 3, 1, seed=0)
    list(Scorer(tmp_path, arm, tiny.train_params(min_confidence=0.5), CPU).scores([fold]))
    teacher, pupil = recorder.shown
    assert teacher == [fold.train.tolist()] and len(pupil[0]) == 5


def test_nor_has_the_classifier_of_the_first_round(sets, tmp_path, recorder):
    arm = Arm(images="data/generated/inversion", real=True, learner="cnn")
    twice = tiny.train_params(soft_labels="teacher", teacher_rounds=2)
    (fold, *_) = cross_validation(sets[0], 3, 1, seed=0)
    list(Scorer(tmp_path, arm, twice, CPU).scores([fold]))
    own, first, second = recorder.shown
    assert own == [fold.train.tolist()] and first == second and first[0] == fold.train.tolist()
    held = set(fold.rows.tolist())
    assert first[1] == [100 + s for s, p in sets[2] if s not in held and p not in held]


def test_a_whole_validation_holds_nothing_out(sets, tmp_path, recorder):
    val = save(tmp_path / "data/real/val", [50, 51, 52], [0, 0, 1])
    arm = Arm(images="data/generated/inversion", real=True, learner="cnn")
    found = validation(sets[0], val, 2, seed=0)
    values = list(Scorer(tmp_path, arm, tiny.train_params(), CPU).scores(found))
    assert values == pytest.approx([200 / 3] * 2) and found[0].seed != found[1].seed
    assert [len(source) for source in recorder.shown[0]] == [12, 36]
    assert has_small_validation(tmp_path)
    save(tmp_path / "data/real/val", range(7), [0] * 7)
    assert not has_small_validation(tmp_path)


def test_images_that_do_not_say_where_they_come_from_cannot_be_left_out(tmp_path):
    made = save(tmp_path / "made", [1, 2], [0, 1], source_id=["r0", None])
    with pytest.raises(UserError, match=r"generated images do not name the real image .* set score to valid"):
        allowed_rows(made, frozenset({"r1"}))
    assert allowed_rows(made, frozenset()).tolist() == [0, 1]
    pairs = save(tmp_path / "pairs", [1, 2], [0, 1], source_id=["r0", "r1"], partner_id=["r1", "r0"])
    with pytest.raises(UserError, match="leaves no generated image to learn from"):
        allowed_rows(pairs, frozenset({"r1"}))
    single = save(tmp_path / "single", [1, 2], [0, 1])
    with pytest.raises(UserError, match="needs two labelled images of each class; set score to validation"):
        cross_validation(single, 5, 1, 0)


def sections(**update):
    found = {name: dict(value) for name, value in BASE.items()}
    for name, value in update.items():
        section, block, key = name.split("__")
        found[section] = {**found[section], block: {**found[section][block], key: value}}
    return found


ARMS = {name: Arm(**arm) for name, arm in BASE["arms"].items()}


@pytest.mark.parametrize(
    ("update", "arms", "stages"),
    [
        ({"train__cnn__lr": 0.2}, "real mixed", []),
        ({"generate__inversion__noise_std": 0.2}, "real", []),
        ({"generate__inversion__noise_std": 0.2}, "mixed", [("generate", "inversion")]),
        ({"generate__inversion__noise_std": 0.2}, "mixed synthetic", [("generate", "inversion")]),
        ({"generate__inversion__noise_std": 0.2}, "reconstruction", []),
        ({"invert__embeddings__lr": 0.2}, "mixed", [("invert", "embeddings"), ("generate", "inversion")]),
    ],
)
def test_only_what_differs_and_is_needed_is_made_anew(update, arms, stages):
    assert stages_to_run(BASE, sections(**update), [ARMS[arm] for arm in arms.split()]) == stages


def test_other_labelled_images_are_everything_anew():
    other = {**BASE, "data": {**BASE["data"], "num_per_class": 5}}
    assert stages_to_run(BASE, other, [ARMS["real"]]) == [("download",)]
    whole = [("download",), ("invert", "embeddings"), ("generate", "inversion")]
    assert stages_to_run(BASE, other, [ARMS["real"], ARMS["mixed"]]) == whole


def test_what_is_made_anew_does_not_touch_the_project(tmp_path):
    root, shop = tmp_path / "root", tmp_path / "shop"
    for name in (
        "data/real",
        "data/learned/a",
        "data/learned/b",
        "data/generated/x",
        "data/bundled",
        "models",
    ):
        (root / name).mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "data/model.json", "data/fingerprints.txt"):
        (root / name).write_text("")
    shop.mkdir()
    furnish(shop, root, [("invert", "a"), ("generate", "x")])
    links = {str(p.relative_to(shop)) for p in shop.rglob("*") if p.is_symlink()}
    of_download = {"data/real", "data/model.json", "data/fingerprints.txt"}
    assert links == {"models", "dvc.yaml", "data/learned/b", "data/bundled", *of_download}


def results(tmp_path, accuracy):
    tuning = Tuning(question="?", trials=3, arms={"real": SPACE, "mixed": SPACE})
    found = {
        arm: search(tmp_path / f"{arm}.journal", seed=i, num_trials=3) for i, arm in enumerate(tuning.arms)
    }
    return Results(tuning, "3 folds", found, ["real"], accuracy)


def test_report_known_answer(tmp_path):
    text = "arm,seed,split,top1_accuracy\nreal,0,val,1\nreal,0,test,70\nreal,1,test,72\nmixed,0,test,74\n"
    found = results(tmp_path, {"real": text, "mixed": text})
    rows = tidy(found)
    assert rows["trial"].tolist() == [0, 1, 2] * 2 and rows[LR].tolist()[0] == "0.9"
    assert rows["score"][0] == pytest.approx(90 - 30 - 1 - 5)
    lines = table(found).splitlines()
    assert (
        lines[0]
        == "| arm | trials (stopped early) | first trial, 3 folds | best | test accuracy | its settings |"
    )
    assert lines[2].startswith("| real | 3 (0) | 54.00 |") and "| 71.00 ± 1.41 | lr " in lines[2]
    assert lines[-3:] == [
        "| without generated images | real | 71.00 ± 1.41 |",
        "| with generated images | mixed | 74.00 |",
        "| with - without |  | +3.00 |",
    ]
    assert "| with - without |  |  |" in table(results(tmp_path, {})), "before the pipeline has run"


def test_a_space_decides_what_kind_of_number_is_tried():
    space = Tuning(
        question="?",
        trials=1,
        arms={"a": {"x": {"low": 1, "high": 9}, "y": {"low": 1, "high": 2.5}, "z": [True, None]}},
    ).arms["a"]
    kinds = {name: type(d).__name__ for name, d in distributions(space).items()}
    assert kinds == {"x": "IntDistribution", "y": "FloatDistribution", "z": "CategoricalDistribution"}
    check(load_small(), BASE, "x")


def load_small():
    return Tuning(question="?", trials=1, arms={"real": {STEPS: {"low": 200, "high": 300}}})


@pytest.mark.slow
def test_a_whole_search_leaves_experiments_and_repeats(finished, tmp_path):
    project = finished.copy(tmp_path / "copy")
    (project.root / "tune").mkdir()
    (project.root / "tune/small.yaml").write_text(
        SMALL.replace("trials: 3", "trials: 2").replace("folds: 3", "folds: 2")
    )
    before = digest_of((project.root / "params.yaml").read_text())
    out = project.run("dinv", "tune", "small").stdout
    assert "Which is better?" in out and re.search(r"\n\d+ s in all", out)
    rows = list(csv.DictReader((project.root / "metrics/tuning/small.csv").open()))
    assert [(r["arm"], r["trial"]) for r in rows] == [
        (a, str(i)) for a in ("real", "mixed") for i in range(2)
    ]
    kept = {p.name: p.read_bytes() for p in (project.root / "metrics/tuning").iterdir()}
    assert "| with - without |" in kept["small.md"].decode()
    assert digest_of((project.root / "params.yaml").read_text()) == before
    shown = project.dvc("exp", "show", "--csv").stdout
    assert "tune-small-real" in shown and "tune-small-mixed" in shown
    again = project.run("dinv", "tune", "small").stdout
    assert not re.findall(r"^Running stage '(?:download|invert|generate|train)", again, re.M)
    assert {p.name: p.read_bytes() for p in (project.root / "metrics/tuning").iterdir()} == kept
    project.dvc("exp", "apply", "tune-small-mixed")
    lr = read_yaml(project.root / "params.yaml")["train"]["cnn"]["lr"]
    assert f"{lr:.4g}" in {r[LR] for r in rows if r["arm"] == "mixed"}
    project.set(data__num_per_class=4)
    stale = project.run("dinv", "tune", "small", ok=False)
    assert (
        stale.stderr.splitlines()[-1]
        == "dinv tune: the data are not those of params.yaml; run dvc repro first"
    )
