"""Every benchmark runs, as little as possible, on the tiny project."""

import json
import re

import numpy as np
import project as projects
import pytest
import tiny

from dinv.errors import UserError
from dinv.images.image_set import ImageSet, save_image_set

NAMES = sorted(path.stem for path in (tiny.ROOT / "benchmarks").glob("*.py"))


@pytest.fixture(scope="module")
def created(tmp_path_factory):
    """A project that has not run: parameters, tiny data, a tiny model."""
    return projects.create(tmp_path_factory.mktemp("benchmarks") / "project").root


@pytest.fixture
def benchmark(created, monkeypatch, capsys):
    """Runs one in the project's folder; returns what it prints."""
    monkeypatch.chdir(created)
    monkeypatch.syspath_prepend(tiny.ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))

    def run(name, *arguments):
        __import__(name).main([*arguments, "--tiny"])
        return capsys.readouterr().out

    return run


def test_every_benchmark_is_run_here():
    names = [
        "common",
        "generate",
        "intake_limits",
        "invert",
        "memory",
        "methods",
        "on_demand",
        "storage",
        "train",
        "verdict",
    ]
    assert names == NAMES


@pytest.mark.parametrize(
    ("name", "unit"), [("generate", "image"), ("train", "image"), ("invert", "image-visit")]
)
def test_both_sides_are_timed(benchmark, name, unit):
    out = benchmark(name)
    times = re.search(rf"time per {unit}: reference (\S+) ms, ours (\S+) ms, ratio (\S+) \(.*n = 1\)", out)
    assert all(float(number) > 0 for number in times.groups()) and "torch 2" in out


def test_visits_to_the_references_loss(benchmark):
    out = benchmark("invert", "--visits", "2")
    assert "reference: held-out loss" in out and "ours: held-out loss" in out and "after 10 visits" in out


def test_random_weights_of_stable_diffusions_architecture_have_its_size(monkeypatch):
    """Building them takes minutes on two cores: only what is asked for is looked at."""
    monkeypatch.syspath_prepend(tiny.ROOT / "benchmarks")
    import common
    import torch

    with torch.device("meta"):
        unet = common.UNet2DConditionModel(**common.SD15_UNET)
        vae = common.AutoencoderKL(**common.SD15_VAE)
    assert [sum(p.numel() for p in m.parameters()) for m in (unet, vae)] == [859_520_964, 83_653_863]


def test_images_on_demand_are_compared_with_stored_ones(benchmark):
    out = benchmark("on_demand")
    assert re.search(
        r"time per image, made before: reference \S+ ms, ours \S+ ms, ratio \S+ \(.*n = 1\)", out
    )
    assert re.search(r"time per image, first pass: \S+ ms, \d+ times as long", out)


def test_limits_of_init_and_check_are_measured_on_bundled_images(benchmark, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    out = benchmark("intake_limits", "--output", str(tmp_path))
    assert "| satellite-ldm |" in out and "| one colour, WEBP 10 | 3 |" in out
    assert {path.name for path in tmp_path.iterdir()} == {"autoencoders.md", "single_colours.md"}


@pytest.mark.slow
def test_three_commands_lead_from_a_folder_to_a_verdict(benchmark, tmp_path):
    if not (tiny.ROOT / ".git").exists():
        pytest.skip("there is no repository to clone")
    out = benchmark("verdict", "--output", str(tmp_path / "verdict.md"))
    assert "; 20 images, " in out and "against your best alternative" in out
    rows = (tmp_path / "verdict.md").read_text().splitlines()[2:]
    found = [row.split("|")[1].strip() for row in rows if row]
    assert found == ["dinv init my_images", "dinv check --quick", "dinv pilot --minutes 0.01", "in all"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "label"),
    [("stages", "50 images, invert, then generate: "), ("training", "private at the end, MB: ")],
)
def test_memory_is_measured_in_a_process_of_its_own(benchmark, what, label):
    found = re.search(rf"{label}(?:in memory )?(\d+)", benchmark("memory", what))
    assert found and (what == "training" or int(found[1]) > 50)


@pytest.mark.slow
def test_storage_compares_every_step(benchmark, tmp_path):
    images = ImageSet(tiny.random_images(3, channels=1), np.zeros(3, np.int64), ["a", "b", "c"], ["x"])
    save_image_set(images, tmp_path / "set")
    out = benchmark("storage", "--source", str(tmp_path / "set"))
    assert "parts: 1 files" in out and "files: 5 files" in out
    assert re.findall(r"^(.*): parts .* ratio [\d.]+$", out, re.M) == [
        "add",
        "status",
        "push",
        "push again",
        "checkout",
    ]


def test_methods_are_timed_with_what_they_learn_from_and_their_unet_passes_counted(benchmark, created):
    out = benchmark("methods")
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")][1:]
    names, learning, _, passes, times, _ = zip(*rows, strict=True)
    assert names == ("| reconstruction", "| inversion") and all(float(t) > 0 for t in times)
    assert [float(n) for n in passes] == [0, 2 * 3]  # guidance, three steps
    assert learning[0] == "0"
    cells = {
        "fewer": {"generate.inversion.num_inference_steps": 2},
        "alone": {"generate.inversion.guidance_scale": 1.0},
    }
    settings = {"question": "?", "cells": cells, "split": "val", "figure": {"x": "cell"}}
    (created / "experiments").mkdir()
    (created / "experiments/costs.yaml").write_text(json.dumps(settings))
    for options, found in (((), "4.0"), (("--cell", "alone"), "3.0")):
        line = benchmark("methods", "--experiment", "costs", *options).splitlines()[-1]
        assert line.startswith("| inversion |") and f"| {found} |" in line
    with pytest.raises(UserError, match="no such cell of costs; there are fewer, alone"):
        benchmark("methods", "--experiment", "costs", "--cell", "other")
