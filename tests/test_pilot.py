"""The pilot: known answers of its statistics, no look at what is scored, and an end that interruptions do not change."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats

from dinv.classify.base import Fitted
from dinv.errors import UserError
from dinv.estimate.measure import Range
from dinv.features.params import FeatureNetwork
from dinv.images.image_set import ImageSet
from dinv.params import load_params, parse_params, read_yaml
from dinv.pilot import calibrate, run
from dinv.pilot.design import Design, Subset, choose_rows
from dinv.pilot.figure import figure, fitted, measured
from dinv.pilot.plan import Plan, Units, candidates, make_plan, scaled_block, scaled_learner
from dinv.pilot.plan import as_json as plan_json
from dinv.pilot.report import Found, as_json, table
from dinv.pilot.settings import competition
from dinv.pilot.statistics import (
    Interval,
    Level,
    PowerLaw,
    choose,
    crossing,
    fit_power_law,
    images_to_tell,
    interval,
    levels,
)
from dinv.pilot.truth import truth_of
from dinv.pilot.work import Work, made_without, training_set
from dinv.strategies.base import StrategyParams

NUM_CLASSES = 10


def design(k=20, num_blocks=5, num_classes=NUM_CLASSES):
    labels = np.repeat(np.arange(num_classes), k)
    return Design(labels, [f"i{i}" for i in range(len(labels))], num_blocks, 0)


def test_blocks_divide_the_images_with_as_many_of_each_class():
    d = design()
    rows = [d.rows(block) for block in d.blocks()]
    assert sorted(np.concatenate(rows)) == list(range(200)) and d.block_size == 4
    for own in rows:
        assert np.bincount(d.labels[own]).tolist() == [4] * NUM_CLASSES
    halves = [d.rows(Subset((2,), half)) for half in (0, 1)]
    assert sorted(np.concatenate(halves)) == rows[2].tolist()
    assert [np.bincount(d.labels[half]).tolist() for half in halves] == [[2] * NUM_CLASSES] * 2


@pytest.mark.parametrize(
    ("k", "num_blocks", "expected"),
    [(20, 5, [1, 2, 4]), (10, 5, [2, 4]), (8, 4, [2]), (6, 3, [2]), (16, 4, [1, 2])],
)
def test_levels_leave_a_block_to_score_on(k, num_blocks, expected):
    d = design(k, num_blocks)
    assert d.levels == expected
    for level in expected:
        for draw in d.draws(level):
            inside, scored = set(d.rows(draw.subset)), set(d.scored(draw))
            halves = [set(d.rows(half)) for half in draw.halves]
            assert scored and not inside & scored and len(inside | scored) == len(d.labels)
            assert halves[0] | halves[1] == inside and not halves[0] & halves[1]
    trained = d.trainings()
    assert len(set(trained)) == len(trained)
    assert {s for level in expected for draw in d.draws(level) for s in (draw.subset, *draw.halves)} == set(
        trained
    )


def test_as_many_images_of_each_class_are_chosen():
    labels = np.array([0] * 11 + [1] * 40 + [2] * 12)
    rows, num_blocks = choose_rows(labels, [str(i) for i in range(63)], ["a", "b", "c"], None, 0)
    assert num_blocks == 5 and np.bincount(labels[rows]).tolist() == [10] * 3 and rows == sorted(rows)
    rows, _ = choose_rows(labels, [str(i) for i in range(63)], ["a", "b", "c"], 1, 0)
    assert np.bincount(labels[rows]).tolist() == [5] * 3
    with pytest.raises(UserError, match=r"class 'b' has 5 labelled images; a pilot needs 6 of each class"):
        choose_rows(np.array([0] * 6 + [1] * 5), [str(i) for i in range(11)], ["a", "b"], None, 0)


def answers(d, rng, accuracies, spread_of_blocks=0.0, spread_of_images=0.2):
    """setting -> training set -> right or wrong: chances differ by image, and by the blocks learned from."""
    easy = rng.normal(0, spread_of_images, len(d.labels))
    found = {}
    for setting, accuracy in accuracies.items():
        luck = rng.normal(0, spread_of_blocks, d.num_blocks)
        chance = {s: np.clip(accuracy + easy + luck[list(s.blocks)].mean(), 0, 1) for s in d.trainings()}
        found[setting] = {s: rng.random(len(d.labels)) < p for s, p in chance.items()}
    return found


def test_a_planted_gain_is_found_and_no_gain_is_not_claimed():
    d, rng = design(), np.random.default_rng(0)
    gain = levels(["a"], ["b"], answers(d, rng, {"a": 0.5, "b": 0.8}), d)[-1]
    assert gain.k == 16 and gain.difference.low > 10 and gain.difference.mean == pytest.approx(30, abs=10)
    claimed = sum(
        levels(["a"], ["b"], answers(d, rng, {"a": 0.6, "b": 0.6}), d)[-1].difference.low > 0
        for _ in range(100)
    )
    assert claimed <= 6


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_intervals_cover_the_truth(spread):
    """Over draws of labelled images: blocks differ in how good classifiers they make, images in how easy they are."""
    d, rng, truth = design(), np.random.default_rng(1), 4.0
    hits = np.zeros(len(d.levels))
    for _ in range(120):
        found = levels(["a"], ["b"], answers(d, rng, {"a": 0.56, "b": 0.6}, spread, 0.1), d)
        hits += [level.difference.low <= truth <= level.difference.high for level in found]
    assert (hits >= 0.9 * 120).all(), hits


def test_interval_known_answer():
    scores = np.array([[1.0, 3.0, np.nan], [np.nan, 5.0, 7.0]])
    found = interval(scores)
    draws, images = np.var([2, 6], ddof=1) / 2, np.var([1, 4, 7], ddof=1) / 3
    df = (draws + images) ** 2 / (draws**2 / 1 + images**2 / 2)
    half = stats.t.ppf(0.975, df) * np.sqrt(draws + images)
    assert (found.mean, found.low, found.high) == pytest.approx((4, 4 - half, 4 + half))
    assert interval(np.ones((2, 3))) == Interval(1, 1, 1)


def test_settings_are_chosen_without_a_look_at_what_is_scored():
    """What is right about scored images may change as it likes: the choice does not."""
    d, rng = design(), np.random.default_rng(2)
    names = ["a", "b", "c"]
    correct = answers(d, rng, dict.fromkeys(names, 0.5))
    for level in d.levels:
        for draw in d.draws(level):
            before, scored = choose(draw, names, correct, d), d.scored(draw)
            for setting in names:
                others = {s: right.copy() for s, right in correct[setting].items()}
                for right in others.values():
                    right[scored] = setting != before
                correct[setting] = others
            assert choose(draw, names, correct, d) == before
            correct = answers(d, rng, dict.fromkeys(names, 0.5))


def test_the_choice_is_that_of_the_halves():
    d = design()
    right = {s: np.ones(200, bool) for s in d.trainings()}
    wrong = {s: np.zeros(200, bool) for s in d.trainings()}
    draw = d.draws(2)[0]
    assert choose(draw, ["w", "r"], {"w": wrong, "r": right}, d) == "r"
    assert choose(draw, ["w", "r"], {"w": right, "r": right}, d) == "w", "the first of equals"
    half_right = {**wrong, draw.halves[0]: np.ones(200, bool)}
    assert choose(draw, ["w", "h"], {"w": wrong, "h": half_right}, d) == "h"


def test_more_settings_on_both_sides_make_no_gain():
    d, rng = design(), np.random.default_rng(3)
    names = [f"{side}{i}" for side in "ab" for i in range(4)]
    found = [
        levels(names[:4], names[4:], answers(d, rng, dict.fromkeys(names, 0.5)), d)[-1].without.mean
        for _ in range(60)
    ]
    assert np.mean(found) == pytest.approx(50, abs=1.5), (
        "chosen on what is scored it would be far above chance"
    )


def test_power_laws_and_where_they_meet():
    law = fit_power_law([4, 8, 16], [100 - 80 * k**-0.5 for k in (4, 8, 16)])
    assert (law.a, law.b) == pytest.approx((80, 0.5)) and law(4) == pytest.approx(40)
    assert fit_power_law([4], [50]) is None
    flat = PowerLaw(40, 0.25)  # better below k = 16
    assert crossing(law, flat, 8) == pytest.approx(16) and crossing(flat, law, 8) is None
    assert crossing(law, PowerLaw(1, 0.25), 16) is None, "too far away"
    assert crossing(None, flat, 8) is None
    assert images_to_tell(Interval(2, -2, 6), 200) == 800 and images_to_tell(Interval(0, -1, 1), 200) is None


LEVEL = Level(
    16,
    Interval(60, 55, 65),
    Interval(62, 57, 67),
    Interval(2.1, 0.6, 3.6),
    {"without": ["cnn"] * 5, "with": ["probe-unet"] * 5},
)
PLAN = Plan(5, 4, 10, 20, 2, 100, ["cnn", "probe-unet"], {"x": "y"}, 12.0, (3000.0, 3600.0, 4200.0))


@pytest.mark.parametrize(
    ("difference", "verdict", "start"),
    [
        ((2.1, 0.6, 3.6), "yes", "generated images add 2.1 points (0.6 to 3.6) to your best alternative at 16 per class"),
        ((-3.2, -12.6, 6.3), "cannot tell", "cannot tell: -3.2 points (-12.6 to 6.3) against your best alternative at 16 per class"),
        ((-4.0, -6.0, -2.0), "no", "no: -4.0 points (-6.0 to -2.0) against your best"),
        ((0.2, -0.4, 0.8), "no", "no: +0.2 points"),
    ],
)  # fmt: skip
def test_verdicts(difference, verdict, start):
    level = replace(LEVEL, difference=Interval(*difference))
    low = replace(LEVEL, k=8, without=Interval(40, 0, 0), with_=Interval(50, 0, 0))
    found = Found("x", [low, level], PLAN, 2.0)
    assert found.verdict == verdict and found.sentence().startswith(start)
    assert ("expect nothing above" in found.sentence()) == (verdict == "yes")
    assert "takes 1.0 h (0.8 to 1.2) as timed now and costs 2.00 (1.67 to 2.33)" in found.next()
    written = json.loads(json.dumps(as_json(found)))
    assert written["sentence"] == found.sentence() and written["next"] == found.next()
    assert [level["k"] for level in written["levels"]] == [8, 16] and written["crossing"] == found.crossing
    assert written["levels"][1]["difference"]["low"] == difference[1]
    assert "| 16 | 60.0 (55.0 to 65.0) | 62.0 (57.0 to 67.0) |" in table(found) and "cnn 5" in table(found)


def test_the_figure_has_points_and_curves():
    low = replace(LEVEL, k=8, without=Interval(40, 30, 50), with_=Interval(50, 40, 60))
    found = Found("x", [low, LEVEL], PLAN, None)
    rows = fitted(found)
    assert rows["k"].max() == pytest.approx(32) and set(rows["side"]) == set(measured(found.levels)["side"])
    assert rows[rows["side"] == "best without"]["mean"].iloc[0] == pytest.approx(40)
    assert figure(found).startswith(b"\x89PNG") and len(fitted(Found("x", [LEVEL], PLAN, None))) == 0


def test_a_network_that_learned_no_labels_competes_frozen_and_trained_further(monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    found = competition(tiny.PARAMS)
    assert "probe-encoder" in found.learners and "probe-domain" in found.left_out
    further, own = found.learners["finetune-encoder"], tiny.PARAMS.train["cnn"]
    assert further.weights == "models/mini-sd/encoder" and further.num_steps == own.num_steps
    assert further.horizontal_flip == own.horizontal_flip and further.cutmix_alpha == 1.0
    large = tiny.PARAMS.data.model_copy(update={"resolution": 128})
    known = {"encoder": FeatureNetwork(network="convnet", path="models/mini-sd/encoder")}
    measure = tiny.PARAMS.measure.model_copy(update={"features": {**tiny.PARAMS.measure.features, **known}})
    asked = competition(tiny.PARAMS.model_copy(update={"measure": measure, "data": large})).learners
    assert "probe-encoder" in asked and "finetune-encoder" not in asked
    assert "probe-encoder" not in competition(tiny.PARAMS.model_copy(update={"data": large})).learners


def test_the_same_learners_compete_on_both_sides(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    found = competition(tiny.PARAMS)
    own = ["cnn", "cnn+mixup+cutmix", "cnn+randaugment"]
    assert list(found.learners) == [*own, "finetune-encoder", "probe-unet", "probe-encoder"]
    assert found.generate == "inversion" and "learned from labels" in found.left_out["probe-domain"]
    assert (
        found.learners["cnn"] == tiny.PARAMS.train["cnn"]
        and found.learners["cnn+mixup+cutmix"].cutmix_alpha == 1
    )
    only_real = {name: arm for name, arm in tiny.PARAMS.arms.items() if arm.only_real}
    with pytest.raises(UserError, match="none learns from images that dinv generates"):
        competition(tiny.PARAMS.model_copy(update={"arms": only_real}))
    foreign = dict.fromkeys(tiny.PARAMS.generate, StrategyParams(strategy="import_folder", input="x"))
    with pytest.raises(UserError, match="none learns from images that dinv generates"):
        competition(tiny.PARAMS.model_copy(update={"generate": foreign}))


def test_plans_shrink_until_they_fit():
    found = competition(tiny.PARAMS)
    probes = [name for name in found.learners if name.startswith("probe-")]
    units = Units(0.01, 0.05, 0.02, dict.fromkeys(probes, 0.01), dict.fromkeys(probes, 0.1), Range(1, 2, 3))
    plans = [make_plan(tiny.PARAMS, found, units, (4, 5, 10), minutes) for minutes in (1e6, 60, 15, 2, 1e-6)]
    assert (
        plans[0].learners == list(found.learners) and plans[0].num_visits == 80 and plans[0].num_steps == 800
    )
    assert all(p.minutes <= 0.8 * m for p, m in zip(plans[:4], (1e6, 60, 15, 2), strict=True))
    assert plans[-1].learners == probes and plans[-1].block_size == 2
    assert plans[-1].left_out["cnn"] == "does not fit into the time"
    assert "left out: cnn: does not fit into the time" in plans[-1].text()
    assert Plan(**json.loads(json.dumps(plan_json(plans[2])))).text() == plans[2].text()
    assert len(list(candidates(found, 4))) == 2 * (5 + 5 + 2 + 7)


def test_what_shrinks_stays_valid():
    learner = scaled_learner(tiny.PARAMS.train["cnn"], PLAN)
    assert (learner.num_steps, learner.warmup_steps) == (100, 12)
    assert scaled_block(tiny.PARAMS.invert["embeddings"], PLAN).num_visits == 20
    assert scaled_block(tiny.PARAMS.generate["inversion"], PLAN).num_images_per_embedding == 2
    assert (
        scaled_block(tiny.PARAMS.generate["reconstruction"], PLAN) == tiny.PARAMS.generate["reconstruction"]
    )


def image_set(n, **provenance):
    return ImageSet(
        tiny.random_images(n), np.arange(n) % 2, [f"r{i}" for i in range(n)], ["a", "b"], provenance
    )


def test_of_half_a_block_nothing_of_the_other_half_is_learned_from():
    made = image_set(
        4, source_id=["r0", "r1", "r2", None], partner_id=["r1", "r0", "r0", None], seed=[1, 2, 3, 4]
    )
    assert made_without(made, {"r2"}) == [0, 1, 3] and made_without(made, {"r1"}) == [2, 3]
    data = training_set([image_set(3), made])
    assert data.mixes and data.sources[1].origins.tolist() == [0, 1, 2, -1] and data.real is data.sources[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, grey_model_folder):
    """A folder with params.yaml of a tiny task with six images of each class; no DVC."""
    root = tmp_path_factory.mktemp("pilot")
    tiny.save_tiny_fashion_mnist(root / "tinydata", per_class=6)
    raw = read_yaml(tiny.ROOT / "params.yaml")
    raw["data"] |= {"root": "tinydata", "resolution": 16, "num_per_class": None, "num_val_per_class": 0}
    raw["model"] |= {"path": str(grey_model_folder), "resolution": 16}
    raw["invert"]["embeddings"]["num_visits"] = 5
    raw["generate"]["inversion"] |= {"num_images_per_embedding": 2, "num_inference_steps": 2}
    raw["train"]["cnn"] |= {"num_steps": 6, "warmup_steps": 1, "batch_size": 16, "seeds": [0]}
    raw["measure"]["features"] = {
        "domain": {"network": "convnet", "path": str(tiny.ROOT / "models/fashion-features")}
    }
    (root / "params.yaml").write_text(json.dumps(raw))
    return root


def finish(root: Path, scratch: str) -> bytes:
    """Run the pilot in this process; returns its JSON."""
    os.environ["DINV_SCRATCH"] = str(root / scratch)
    run.run_pilot("tiny", 1000, None, True)
    return (root / "metrics/pilot/tiny.json").read_bytes()


def start(root: Path, scratch: str) -> int:
    """The same in a fork."""
    pid = os.fork()
    if pid == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            finish(root, scratch)
        finally:
            os._exit(0)
    return pid


def test_a_killed_pilot_ends_with_the_same_bytes_and_test_images_are_not_read(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DINV_SCRATCH", "")
    monkeypatch.setattr("dinv.sources.task.Split._read", only_of(folder))
    expected = finish(folder, "whole")
    written = json.loads(expected)
    assert (
        "Plan:" in capsys.readouterr().out
        and written["sentence"]
        and (folder / "metrics/pilot/tiny.png").stat().st_size > 5000
    )
    assert [level["k"] for level in written["levels"]] == [4] and written["levels"][0]["num_draws"] == 3
    assert written["crossing"] is None and written["plan"]["learners"] == list(
        competition(load_params()).learners
    )
    (plan,) = (folder / "whole/pilot").glob("*/plan.json")
    copy = folder / "killed" / plan.relative_to(folder / "whole")
    copy.parent.mkdir(parents=True)
    copy.write_bytes(plan.read_bytes())
    pid = start(folder, "killed")
    while len(list((folder / "killed").rglob("answers/*.json"))) < 15:
        time.sleep(0.05)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = {p: p.stat().st_mtime_ns for p in (folder / "killed").rglob("answers/*.json")}
    num_all = len(list((folder / "whole").rglob("answers/*.json")))
    assert 15 <= len(before) < num_all
    assert finish(folder, "killed") == expected
    assert before == {p: p.stat().st_mtime_ns for p in before}, "a finished answer was computed again"


def only_of(folder: Path):
    """A reader of pictures that refuses test images."""
    from dinv.sources.task import Split

    read = Split._read

    def checked(self, row, sides):
        assert "train" in self.raw.ids[row], self.raw.ids[row]
        return read(self, row, sides)

    return checked


class Recorder:
    """A learner that notes what it was shown and says nothing of use."""

    def __init__(self):
        self.shown = []

    def fit(self, data, params, seed, device, advance):
        self.shown.append([sorted(source.images[:, 0, 0, 0].tolist()) for source in data.sources])
        return Fitted({}, {}, [])

    @staticmethod
    def load(tensors, build, device):
        return lambda images: torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


def test_what_is_scored_is_never_learned_from_nor_what_was_generated_from_it(monkeypatch, tmp_path):
    """Real images have their row as pixels, generated ones 100 and the row of their source."""
    d, recorder = design(20, 5, 2), Recorder()

    def pictures(values, **more):
        pixels = np.repeat(np.asarray(values, np.uint8), 64).reshape(-1, 8, 8, 1)
        labels = d.labels[np.asarray(values) % 100]
        return ImageSet(pixels, labels, [f"i{v}" for v in values], ["a", "b"], more)

    small = pictures(np.arange(40))
    own = competition(tiny.PARAMS).only(lambda p: p == tiny.PARAMS.train["cnn"], "")
    work = Work(tiny.PARAMS, own, PLAN, d, small, small, tmp_path)
    made = {b: pictures(100 + d.rows(b), source_id=[f"i{r}" for r in d.rows(b)]) for b in d.blocks()}
    monkeypatch.setitem(work.__dict__, "made", made)
    monkeypatch.setattr("dinv.pilot.work.LEARNERS", {"cnn": recorder})
    monkeypatch.setattr("dinv.classify.store.LEARNERS", {"cnn": recorder})
    run.compete(work)
    shown = iter(recorder.shown)
    for subset in d.trainings():
        rows = d.rows(subset).tolist()
        assert [next(shown), next(shown)] == [[rows], [rows, [100 + row for row in rows]]]
    count = len(recorder.shown)
    run.compete(work)
    assert len(recorder.shown) == count, "answers are kept"


def test_calibration_counts_how_often_the_truth_is_covered(folder, monkeypatch):
    ends = iter([(-1, 5), (3, 5), (1, 1.5), (-9, 9)])
    seen = []

    def fake(params, plan):
        seen.append((params.data.seed, plan))
        low, high = next(ends)
        return Found("x", [replace(LEVEL, difference=Interval((low + high) / 2, low, high))], PLAN, None)

    monkeypatch.chdir(folder)
    asked = []
    found = list(calibrate.calibration(load_params(), 4, lambda k: asked.append(k) or 2.0, fake))
    assert [len(rows) for rows in found] == [1, 2, 3, 4], "what is finished is there to be written"
    assert seen == [(0, None), (1, PLAN), (2, PLAN), (3, PLAN)], "all keep to the plan of the first"
    rows = found[-1]
    assert asked == [LEVEL.k] and rows["covered"].tolist() == [True, False, False, True]
    assert rows["verdict"].tolist() == ["cannot tell", "yes", "yes", "cannot tell"]
    text = calibrate.sentence(rows, Path("a.csv"))
    assert text.startswith(
        "2 of 4 intervals cover +2.0 points; they are 6.6 points wide on average; verdicts: "
    )
    for numbers, line in (((0, 1), "--pilots 0"), ((1, 0), "--runs 0")):
        with pytest.raises(UserError, match=f"{line}: must be at least 1"):
            calibrate.run_calibration("x", numbers[0], 2.0, numbers[1], 15, [])


def test_the_truth_is_the_difference_between_the_best_of_both_sides():
    """Means without 50 and 53, with 52 and 51: 52 - 53, by runs 1, -1 and -3."""
    runs = pd.DataFrame(
        {
            "seed": [7, 8, 9],
            "k": 4,
            "without a": [50.0, 50, 50],
            "without b": [52.0, 53, 54],
            "with a": [53.0, 52, 51],
            "with b": [51.0, 51, 51],
        }
    )
    truth = truth_of(runs)
    assert truth.best == {"without": "b", "with": "a"} and truth.n == 3
    assert truth.mean == pytest.approx(-1) and truth.stderr == pytest.approx(2 / 3**0.5)
    assert np.isnan(truth_of(runs[:1]).stderr)


def test_a_calibration_measures_the_answer_by_full_runs(folder, monkeypatch, capsys):
    """Of other labelled images, scored on all test images; what is finished is not computed again."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DINV_SCRATCH", str(folder / "calibration"))
    calibrate.run_calibration("tiny", 1, None, 2, 1000, ["probe-unet"])
    out = capsys.readouterr().out
    assert (
        "of 1 intervals cover" in out
        and "each of probe-unet" in out
        and "left out: cnn: not asked for" in out
    )
    runs = pd.read_csv("metrics/pilot/tiny-runs.csv")
    assert list(runs.columns) == ["seed", "k", "without probe-unet", "with probe-unet"]
    assert runs["seed"].tolist() == [1000, 1001] and runs["k"].tolist() == [4, 4]
    rows = pd.read_csv("metrics/pilot/tiny-calibration.csv")
    mean = (runs["with probe-unet"] - runs["without probe-unet"]).mean()
    assert rows["truth"].tolist() == pytest.approx([mean], abs=1e-4)
    monkeypatch.setattr(Work, "answers", None)
    calibrate.run_calibration("tiny", 1, None, 2, 1000, ["probe-unet"])
    assert pd.read_csv("metrics/pilot/tiny-runs.csv").equals(runs)
    with pytest.raises(UserError, match=r"--learners vit: does not compete here; there are cnn, "):
        calibrate.run_calibration("tiny", 1, None, 2, 1000, ["vit"])


def test_a_wrong_time_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"--minutes 0: must be above 0"):
        run.run_pilot("x", 0, None, True)
    assert parse_params(read_yaml(folder / "params.yaml")).data.num_per_class is None
