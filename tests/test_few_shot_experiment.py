"""Experiment few_shot: same learners and numbers of images in every run, shares of real images chosen on validation."""

import pandas as pd
import pytest
import tiny
from test_methods_experiment import assert_holds, runs_of

from dinv.params import read_yaml

LEARNERS = ("clip_probe", "coop", "tip_adapter", "tip_adapter_f")


@pytest.fixture(scope="module")
def runs():
    return runs_of("few_shot")


def test_every_learner_has_the_photos_alone_and_generated_images_besides(runs):
    experiment, made = runs
    params = made[0][1]
    for learner in LEARNERS:
        alone, both = params.arms[f"{learner}_real"], params.arms[learner]
        assert alone.only_real and alone.learner == both.learner == learner
        assert (both.images, both.real) == ("data/generated/inversion", True)
    assert len(experiment.arms) == 2 * len(LEARNERS) + 1 and "zero_shot_clip" in experiment.arms


def test_photos_per_class_go_from_one_to_sixteen(runs):
    experiment, made = runs
    assert len(made) == 30 and experiment.split == "test" and experiment.pool == "data.seed"
    for run, params in made:
        names, k = run.place["cell"].split(", ")
        preset = "photos_seen" if names.startswith("known") else "photos"
        wanted = read_yaml(tiny.ROOT / f"presets/{preset}.yaml")
        assert_holds(params.model_dump(), wanted)
        assert params.data.num_per_class == int(k)
        paths = {params.train[name].path for name in LEARNERS[1:]} | {
            params.train["clip_probe"].features.path
        }
        assert paths == {"models/mini-sd/clip"}  # one network for all
    assert sorted({params.data.num_per_class for _, params in made}) == [1, 2, 4, 8, 16]


def test_images_are_those_of_methods_text(runs):
    five = runs_of("methods_text")[1][0][1]
    for _, params in runs[1]:
        ours, theirs = params.generate["inversion"].model_dump(), five.generate["inversion"].model_dump()
        differ = {key: value for key, value in ours.items() if value != theirs[key]}
        few = {1: {"interpolation": 0.0}, 16: {"num_images_per_embedding": 5}}
        assert differ == few.get(params.data.num_per_class, {})
        assert params.invert["embeddings"] == five.invert["embeddings"]
        searched = params.train["clip_probe"].C == "cross_validation"
        assert searched == (params.data.num_per_class >= 4)


def test_prompts_of_the_longest_name_fit_the_clip(runs):
    """Nine tokens, a full stop, start and end: what is left of sixteen is the context's."""
    assert runs[1][0][1].train["coop"].num_context_tokens == 16 - 9 - 1 - 2


def test_each_learner_has_the_share_of_real_images_that_won_on_validation_images(runs):
    settings, tried = runs_of("few_shot_settings")
    assert len(tried) == 6 and settings.split == "val" and settings.grid == {"data.seed": [5]}  # not reported
    found = pd.read_csv(tiny.ROOT / "metrics/experiments/few_shot_settings.csv")
    found = found[(found["metric"] == "top1_accuracy") & (found["split"] == "val")]
    accuracy = found.set_index(["cell", "arm"])["value"]
    for run, params in runs[1]:
        names = run.place["cell"].partition(",")[0]
        choices = {r.place["cell"]: p for r, p in tried if r.place["cell"].startswith(names)}
        for learner in LEARNERS:
            shares = {accuracy[cell, learner]: set() for cell in choices}
            for cell, p in choices.items():
                shares[accuracy[cell, learner]].add(p.train[learner].real_fraction)
            assert len(set.union(*shares.values())) == 3
            assert params.train[learner].real_fraction in shares[max(shares)], (names, learner)
