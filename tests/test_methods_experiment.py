"""Experiment methods: every block of it on a tiny model, equal numbers of images, no sight of held-out images."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_methods as methods
from PIL import Image
from tiny_methods import plan, render

from dinv.execution.params import ExecutionParams
from dinv.experiments.pipeline import _change
from dinv.experiments.spec import changed, load_experiment
from dinv.images.fingerprint import write_fingerprints
from dinv.inversion.base import Place
from dinv.inversion.registry import METHODS
from dinv.params import LEARNED, parse_params, read_yaml
from dinv.strategies.base import Material
from dinv.strategies.registry import STRATEGIES

SHORT = {"num_visits": 2, "num_steps": 2, "num_inversion_steps": 4, "num_inference_steps": 4, "num_starts": 2}
FEW = {"latent_size": 6, "generator_width": 4, "discriminator_width": 4, "resolution": 16, "batch_size": 2}
TASKS = {  # images, generator, preset
    "satellite tiles": ("data/bundled/satellite", "models/satellite-ldm", "satellite"),
    "blood cells": ("data/bundled/cells", "models/cells-ldm", "cells"),
    "clothes": ("data/bundled/fashion-mnist", "models/fashion-ldm", "fashion"),
}


def runs_of(name):
    """An experiment, and its runs with their parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny.ROOT)
        base = read_yaml(Path("params.yaml"))
        experiment = load_experiment(name, base)
        return experiment, [
            (r, parse_params(changed(base, r.settings, Path(name)))) for r in experiment.runs()
        ]


@pytest.fixture(scope="module")
def runs():
    return runs_of("methods")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Five images of each of three classes, a tiny model without text, a pool that holds a test image."""
    root = tmp_path_factory.mktemp("place")
    labels = [k for k in range(3) for _ in range(5)]
    real = methods.save_real(root / "data/real/train_model", labels=labels)
    pool = root / "data/bundled/satellite"
    pool.mkdir(parents=True)
    pictures = tiny.random_images(12, side=16, seed=5)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(pool / f"{i}.png")
    write_fingerprints([pictures[3:4]], root / "data/fingerprints.txt")
    (root / "models").mkdir()
    (root / "models/mini-sd").symlink_to(tiny.ROOT / "models/mini-sd")
    return root, real, tiny.load_tiny(tiny.save_tiny_model(root / "model", text=False))


def shortened(params):
    return params.model_copy(update={k: v for k, v in SHORT.items() if k in type(params).model_fields})


def strategies(params, place, blocks):
    """Strategies of the blocks, on what they want to have learned in a few steps."""
    root, real, model = place
    where = Place(lambda: model, ["code", "model"], ExecutionParams.here("cpu"))
    for name in {params.generate[block].input.removeprefix(LEARNED) for block in blocks} & set(params.invert):
        learned = shortened(params.invert[name])
        if learned.method == "gan":
            learned = learned.model_copy(update=FEW)
        METHODS[learned.method].learn(learned, real, where, root / LEARNED / name)
    for block in blocks:
        p = shortened(params.generate[block])
        yield block, STRATEGIES[p.strategy](p, Material(real, Path(p.input), lambda: model))


def test_every_method_makes_as_many_images_of_every_class(runs, place, monkeypatch):
    experiment, made = runs
    monkeypatch.chdir(place[0])
    monkeypatch.setenv("DINV_SCRATCH", "scratch")
    params = made[0][1]
    arms = [a for a in experiment.arms if a not in ("real", "reconstruction")]
    blocks = [params.arms[arm].images.rpartition("/")[2] for arm in arms]
    assert len(set(blocks)) == len(arms) == 10
    for block, strategy in strategies(params, place, blocks):
        draws = plan(strategy)
        counts = np.bincount([d.label for d in draws], minlength=3)
        assert counts.sum() == 150, block  # ten of each of fifteen
        if "genie" not in block and block != "diff_mix":  # whose labels are those of random targets
            assert counts.tolist() == [50, 50, 50], block
        images = render(strategy, place[2], [draws[0], draws[-1]])
        assert images.shape == (2, 16, 16, 3), block


def test_numbers_are_equal_in_every_run_and_only_the_pool_differs_by_task(runs):
    experiment, made = runs
    assert len(made) == 9 and experiment.split == "test" and experiment.pool == "data.seed"
    for run, params in made:
        root, model, _ = TASKS[run.place["cell"]]
        k = params.data.num_per_class
        assert k == 5 and params.data.root == root and params.model.path == model
        assert_numbers(params, 10)
        retrieval = params.generate["retrieval"]
        assert retrieval.input == params.data.root and "mini-sd" in retrieval.features.path  # saw no label
        learners = {params.arms[arm].learner for arm in experiment.arms}
        assert learners == {"cnn"} and all(params.arms[a].real for a in experiment.arms[2:])


def assert_numbers(params, num_images):
    """Of each labelled image, by every strategy that is compared."""
    for block in params.generate.values():
        if block.strategy == "gan":
            assert block.num_images_per_class == num_images * params.data.num_per_class
        elif block.strategy != "reconstruction":
            found = dict(block)
            assert found.get("num_images_per_source", found.get("num_images_per_embedding")) == num_images


def test_with_twenty_labelled_images_only_the_numbers_differ(runs):
    experiment, made = runs_of("methods_20")
    assert len(made) == 9
    fewer = {run.label(): params.model_dump() for run, params in runs[1]}
    for run, params in made:
        assert params.data.num_per_class == 20 and experiment.arms == runs[0].arms
        assert_numbers(params, 5)
        before = dict(leaves(fewer[run.label()]))
        differ = {path for path, value in leaves(params.model_dump()) if before[path] != value}
        assert {path.rpartition(".")[2] for path in differ} == {
            "num_per_class",
            "num_images_per_source",
            "num_images_per_embedding",
            "num_images_per_class",
        }


def test_with_a_lora_only_what_is_learned_differs(runs):
    without = {run.label(): params.model_dump() for run, params in runs[1]}
    for run, made in runs_of("methods_lora")[1]:
        params = made.model_dump()
        learned, tokens = params["invert"].pop("concepts"), params["invert"]["tokens"]
        same = set(tokens) - {"method", "num_visits"}
        assert {key: learned[key] for key in same} == {key: tokens[key] for key in same}
        for name in ("diff_mix", "diff_ii"):
            adapted, arm = params["generate"].pop(f"{name}_lora"), params["arms"].pop(f"{name}_lora")
            assert adapted == params["generate"][name] | {"input": "data/learned/concepts"}
            assert arm == params["arms"][name] | {"images": f"data/generated/{name}_lora"}
        assert params == without[run.label()]


def leaves(tree, path=""):
    """(path, value) of every parameter."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def test_settings_of_the_tasks_are_those_of_their_presets_but_for_lambda(runs):
    for run, params in runs[1]:
        preset = read_yaml(tiny.ROOT / f"presets/{TASKS[run.place['cell']][2]}.yaml")
        del preset["generate"]
        found = params.model_dump()
        for section, values in preset.items():
            assert_holds(found[section], values)


def assert_holds(found, wanted):
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_holds(found[key], value)
        else:
            assert found[key] == value, key


def test_dvc_reads_the_settings_as_they_are_meant(runs, tmp_path):
    """As `dvc exp run -S` does: blocks that are added, then parts of them."""
    from dvc.utils.hydra import apply_overrides

    for run, params in (runs[1][0], runs[1][-1]):
        path = tmp_path / "params.yaml"
        path.write_text((tiny.ROOT / "params.yaml").read_text())
        apply_overrides(path, [_change(name, value) for name, value in run.settings.items()])
        assert parse_params(read_yaml(path)) == params


def test_every_strategy_has_the_setting_that_won_among_three_on_validation_images(runs):
    assert_won("methods_settings", {run.place["cell"]: params for run, params in runs[1]})


def assert_won(name, chosen):
    """`chosen`: task, with which the names of an experiment's cells begin -> parameters of what reports."""
    settings, made = runs_of(name)
    assert settings.split == "val" and settings.grid == {
        "data.seed": [5]
    }  # not among those that are reported
    found = pd.read_csv(tiny.ROOT / f"metrics/experiments/{name}.csv")
    found = found[(found["metric"] == "top1_accuracy") & (found["split"] == "val")]
    accuracy = found.set_index(["cell", "arm"])["value"]
    assert len(made) == 3 * len(chosen)
    for task, params in chosen.items():
        tried = {r.place["cell"]: p for r, p in made if r.place["cell"].startswith(task)}
        for arm in settings.arms[1:]:
            block = params.arms[arm].images.rpartition("/")[2]
            best = max(accuracy[cell, arm] for cell in tried)
            winners = [p.generate[block] for cell, p in tried.items() if accuracy[cell, arm] == best]
            assert len(tried) == 3 and params.generate[block] in winners, (task, arm)
