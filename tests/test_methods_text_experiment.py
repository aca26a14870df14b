"""Experiment methods_text: every block of it on a tiny model that reads, equal numbers of images, the presets' settings."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_methods as methods
from test_methods_experiment import assert_holds, assert_won, runs_of, shortened
from tiny_methods import plan, render

from dinv.execution.params import ExecutionParams
from dinv.experiments.pipeline import _change
from dinv.inversion.base import Place
from dinv.inversion.registry import METHODS
from dinv.params import LEARNED, parse_params, read_yaml
from dinv.strategies.base import Material
from dinv.strategies.registry import STRATEGIES

TEXT = ["class_name_prompt", "lecf", "real_guidance", "genie", "diff_mix", "diff_ii"]


@pytest.fixture(scope="module")
def runs():
    return runs_of("methods_text")


@pytest.fixture(scope="module")
def place(tmp_path_factory, text_model_folder):
    """Five images of each of three classes, a tiny model that reads, a tiny CLIP where the experiment names one."""
    root = tmp_path_factory.mktemp("place")
    real = methods.save_real(root / "data/real/train_model", labels=[k for k in range(3) for _ in range(5)])
    methods.save_clip(root / "models/mini-sd/clip")
    return root, real, tiny.load_tiny(methods.save_reading_model(text_model_folder, root / "model"))


@pytest.mark.parametrize("block", TEXT)
def test_every_method_makes_as_many_images_of_every_class(runs, place, block, monkeypatch):
    (root, real, model), params = place, runs[1][0][1]
    monkeypatch.chdir(root)
    assert params.arms[block].images == f"data/generated/{block}" and params.arms[block].learner == "cnn"
    p = shortened(params.generate[block])
    if p.input.startswith(LEARNED):
        learned = params.invert[p.input.removeprefix(LEARNED)]
        where = Place(lambda: model, ["code", "model"], ExecutionParams.here("cpu"))
        METHODS[learned.method].learn(learned, real, where, Path(p.input))
    strategy = STRATEGIES[p.strategy](p, Material(real, Path(p.input), lambda: model))
    draws = plan(strategy)
    counts = np.bincount([d.label for d in draws], minlength=3)
    assert counts.sum() == 150  # ten of each of fifteen
    if block not in ("genie", "diff_mix"):  # whose labels are those of random targets
        assert counts.tolist() == [50, 50, 50]
    assert render(strategy, model, [draws[0], draws[-1]]).shape == (2, 16, 16, 3)


def test_numbers_are_equal_in_every_run_and_settings_are_those_of_the_presets(runs):
    experiment, made = runs
    assert len(made) == 12 and experiment.split == "test" and experiment.pool == "data.seed"
    for run, params in made:
        preset = "photos_seen" if run.place["cell"].startswith("known") else "photos"
        assert_holds(params.model_dump(), read_yaml(tiny.ROOT / f"presets/{preset}.yaml"))
        k = params.data.num_per_class
        assert run.place["cell"].endswith(f", {k}")
        of_each = {5: 10, 20: 5}[k]  # as methods and methods_20
        for name in ("class_name_prompt", "lecf"):
            assert params.generate[name].num_images_per_class == of_each * k
        for name in ("real_guidance", "genie", "diff_mix", "diff_ii", "variation"):
            assert params.generate[name].num_images_per_source == of_each
        assert params.generate["inversion"].num_images_per_embedding == of_each
        assert set(params.arms) == {"real", "mixed", "variation", *TEXT}
        assert {arm.learner for arm in params.arms.values()} == {"cnn"}


def test_every_strategy_has_the_setting_that_won_among_three_on_validation_images(runs):
    """And differs from experiment methods_text in that alone."""
    experiment, made = runs_of("methods_text_tuned")
    authors = {(r.place["cell"], r.place["data.seed"]): p.model_dump() for r, p in runs[1]}
    assert len(made) == 6 and experiment.split == "test" and experiment.pool == "data.seed"
    assert_won("methods_text_settings", {r.place["cell"]: p for r, p in made})
    for run, params in made:
        theirs = authors[f"{run.place['cell']}, 5", run.place["data.seed"]]
        ours = params.model_dump()
        assert all(ours[s] == theirs[s] for s in set(ours) - {"generate"})
        assert set(ours["generate"]) == set(theirs["generate"])
        for block, settings in ours["generate"].items():
            differ = {key for key, value in settings.items() if value != theirs["generate"][block][key]}
            assert len(differ) <= 1 and differ <= {"noise_std", "guidance_scale", "strengths"}, block


def test_dvc_reads_the_settings_as_they_are_meant(runs, tmp_path):
    from dvc.utils.hydra import apply_overrides

    run, params = runs[1][-1]
    path = tmp_path / "params.yaml"
    path.write_text((tiny.ROOT / "params.yaml").read_text())
    apply_overrides(path, [_change(name, value) for name, value in run.settings.items()])
    assert parse_params(read_yaml(path)) == params
