"""Tables of accuracies and gains: known answers, and what must stay apart."""

import math

import pandas as pd
import pytest

from dinv.classify.arms import Arm, baselines, image_sets
from dinv.errors import UserError
from dinv.metrics.gains import paired_gains, statistics
from dinv.metrics.report import accuracy_table, summary
from dinv.metrics.tables import markdown, write_csv

BASELINES = {"synthetic": "real"}


def arm(images="data/real/train", real=False, learner="cnn"):
    return Arm(images=images, real=real, learner=learner)


def scores(seeds=(1, 0), splits=("test", "val"), lone=()):
    rows = [
        (name, seed, split, value + seed + (100 if split == "val" else 0), 0.0, 3.0 + seed)
        for name, value in (("real", 10.0), ("synthetic", 20.0), *lone)
        for seed in seeds
        for split in splits
    ]
    names = ["arm", "seed", "split", "top1_accuracy", "balanced_accuracy", "expected_calibration_error"]
    return pd.DataFrame(rows, columns=names)


def test_statistics_known_answer():
    table = pd.DataFrame({"arm": ["b"] * 3 + ["a"], "value": [1.0, 2.0, 3.0, 4.0]})
    found = statistics(table, ["arm"])
    assert list(found.index) == ["b", "a"] and list(found["n"]) == [3, 1]
    assert found.loc["b"].tolist() == pytest.approx([2.0, 1.0, 1 / math.sqrt(3), 3])
    assert math.isnan(found.loc["a", "std"]) and math.isnan(found.loc["a", "stderr"])


def test_gains_are_paired_and_signed():
    table = pd.DataFrame(
        {"arm": ["real"] * 2 + ["synthetic"] * 2, "seed": [0, 1, 1, 0], "value": [1.0, 2.0, 12.0, 11.0]}
    )
    found = paired_gains(table, BASELINES, ["seed"])
    assert found[["arm", "seed", "value"]].values.tolist() == [["synthetic", 1, 10.0], ["synthetic", 0, 10.0]]
    with pytest.raises(UserError, match=r"arm synthetic: seed 1 is not one of its baseline real"):
        paired_gains(table.drop(1), BASELINES, ["seed"])


def test_the_baseline_is_the_same_learner_on_real_images_only():
    made = "data/generated/x"
    arms = {
        "mixed": arm(made, real=True),
        "probe": arm(made, learner="probe"),
        "real": arm(),
        "alone": arm(made, learner="other"),
        "real_probe": arm(learner="probe"),
    }
    assert baselines(arms) == {"mixed": "real", "probe": "real_probe"}
    assert image_sets({**arms, "more": arm("data/generated/y")}) == {"x": made, "y": "data/generated/y"}


def test_summary_keeps_arms_and_splits_apart():
    out = summary(scores(), BASELINES)
    assert out["top1_accuracy"] == {"real": 10.5, "synthetic": 20.5}
    assert out["val_top1_accuracy"]["real"] == 110.5
    assert out["expected_calibration_error"] == {"real": 3.5, "synthetic": 3.5}
    assert out["gain_over_real"] == {"synthetic": {"mean": 10.0, "std": 0.0, "stderr": 0.0, "n": 2}}


def test_without_validation_images_or_spread_there_is_no_number():
    out = summary(scores(seeds=[0], splits=["test"]), BASELINES)
    assert "val_top1_accuracy" not in out
    assert out["gain_over_real"]["synthetic"] == {"mean": 10.0, "std": None, "stderr": None, "n": 1}


def test_accuracy_table_known_answer():
    """An arm without a baseline has no gain; another learner may have other seeds."""
    found = pd.concat([scores(), scores(seeds=[7], lone=[("probe", 30.0)]).query("arm == 'probe'")])
    table = accuracy_table(found, BASELINES, {"real": 5, "synthetic": 50, "probe": 5})
    assert table.splitlines() == [
        "| arm | training images | test top-1 accuracy, mean ± std (n) | gain over real ± stderr |",
        "|---|---|---|---|",
        "| real | 5 | 10.50 ± 0.71 (2) |  |",
        "| synthetic | 50 | 20.50 ± 0.71 (2) | +10.00 ± 0.00 |",
        "| probe | 5 | 37.00 (1) |  |",
    ]


def test_cells_of_a_table_stay_as_they_are():
    table = pd.DataFrame({"lambda": ["0.50", "1"], "gain, of course": ["+3", "-0.10 ± 0.20"]})
    assert markdown(table).splitlines()[2:] == ["| 0.50 | +3 |", "| 1 | -0.10 ± 0.20 |"]


def test_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"class": ["T-shirt, top", "é"], "value": [0.1, None]})
    write_csv(tmp_path / "a.csv", table)
    assert (tmp_path / "a.csv").read_bytes() == 'class,value\n"T-shirt, top",0.1\né,\n'.encode()
