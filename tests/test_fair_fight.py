"""The fair fight's experiments: arms of all of them learn from the same images, with equal settings on both sides."""

from pathlib import Path

import pandas as pd
import pytest
import tiny

from dinv.experiments.spec import changed, load_experiment
from dinv.params import parse_params, read_yaml

NAMES = ("fair_fight", "fair_fight_finetuned", "fair_fight_views")
NAMES_20 = ("fair_fight_20", "fair_fight_20_views")
SHARED = ("data", "model", "invert", "measure")


@pytest.fixture(scope="module")
def runs():
    """By experiment: place -> parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.ROOT)
        base = read_yaml(Path("params.yaml"))
        return {
            name: {
                tuple(run.place.values()): parse_params(changed(base, run.settings, Path(name)))
                for run in load_experiment(name, base).runs()
            }
            for name in NAMES + NAMES_20
        }


@pytest.mark.parametrize(("names", "num_runs"), [(NAMES, 15), (NAMES_20, 5)])
def test_images_are_the_same_in_all_of_them(runs, names, num_runs):
    first, *others = (runs[name] for name in names)
    assert len(first) == num_runs
    for other in others:
        assert first.keys() == other.keys()
        for place, params in first.items():
            for section in SHARED:
                assert getattr(params, section) == getattr(other[place], section), (place, section)
            assert params.generate["inversion"] == other[place].generate["inversion"]


@pytest.mark.parametrize(("names", "at_least"), [(NAMES, 100), (NAMES_20, 50)])
def test_committed_rows_say_so_too(names, at_least):
    """What was measured of image sets, and held-out losses, is equal to the last digit."""
    keys = ["cell", "data.seed", "arm", "num_images", "metric"]
    of_images = [
        pd.read_csv(tiny.ROOT / f"metrics/experiments/{name}.csv", dtype=str).query(
            "(metric.str.startswith('domain') and arm != 'domain') or metric == 'heldout_loss'",
            engine="python",
        )
        for name in names
    ]
    first, *others = (
        rows.set_index(keys)["value"].groupby(level=keys, dropna=False).first() for rows in of_images
    )
    assert len(first) > at_least and all(first.equals(other) for other in others)


def test_a_side_has_no_augmentation_that_the_other_has_not(runs):
    for params in runs["fair_fight_finetuned"].values():
        real, mixed, taught = (params.train[params.arms[a].learner] for a in params.arms)
        assert real == mixed
        differs = {k for k, v in taught.model_dump().items() if v != mixed.model_dump()[k]}
        assert differs == {"soft_labels", "teacher"}  # at its default weight and temperature
        assert real.vertical_flip == real.quarter_turns == (params.data.mode == "RGB")


def test_teachers_differ_in_who_is_asked_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.ROOT)
        base = read_yaml(Path("params.yaml"))
        experiment = load_experiment("teachers", base)
        made = [parse_params(changed(base, run.settings, Path("teachers"))) for run in experiment.runs()]
    assert experiment.split == "val" and len(made) == 6
    asked = {
        "mixed_finetune": set(),
        "mixed_own": {"soft_labels"},
        "mixed_taught": {"soft_labels", "teacher"},
    }
    asked["mixed_both"] = asked["mixed_taught"] | {"teacher_share"}
    for params in made:
        assert params.data.num_per_class == 5
        nobody = params.train["finetune"].model_dump()
        for arm, wanted in asked.items():
            learner = params.train[params.arms[arm].learner].model_dump()
            assert {key for key, value in learner.items() if value != nobody[key]} == wanted, arm
        assert params.train["both"].teacher == params.train["taught"].teacher


def test_what_is_averaged_is_the_same_on_both_sides(runs):
    """The teacher's weight matters to generated images only, and the probe never learns from these."""
    for place, params in runs["fair_fight_views"].items():
        blocks = (params.arms[f"{side}_ensemble"].learner for side in ("real", "mixed", "domain"))
        real, mixed, domain = (params.train[block] for block in blocks)
        assert real == mixed and real.members == domain.members
        assert [m.learner for m in real.members] == ["cnn"] * (place[0] == "clothes") + ["finetune", "probe"]
        assert real.members[-1].real_fraction == 1.0 and real.members[-1].features == real.teacher.features
        assert real.members[-1].features == params.train["views"].features
        if place[0] != "clothes":
            finetuned = runs["fair_fight_finetuned"][place].train["finetune"]
            assert real.members[0].model_copy(update={"seeds": [0]}) == finetuned
