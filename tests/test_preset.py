"""Presets are valid, keep comments, and change only what they name."""

import shutil
import sys

import pytest
import tiny
from ruamel.yaml import YAML

from dinv import preset
from dinv.errors import UserError
from dinv.params import load_params
from dinv.sources.registry import SOURCES

NAMES = sorted(path.stem for path in (tiny.ROOT / "presets").glob("*.yaml"))
DATA_SETS = sorted(set(NAMES) & set(SOURCES))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(tiny.ROOT / "params.yaml", tmp_path)
    shutil.copytree(tiny.ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flat(params):
    return {f"{s}.{k}": v for s, values in params.model_dump().items() for k, v in values.items()}


def written(name):
    raw = YAML(typ="safe").load((tiny.ROOT / f"presets/{name}.yaml").read_text())
    return {f"{s}.{k}": v for s, values in raw.items() for k, v in values.items()}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_and_changes_what_it_names_and_no_more(folder, name):
    preset.apply_presets([name])
    assert flat(load_params()) == flat(tiny.PARAMS) | written(name)
    before = (tiny.ROOT / "params.yaml").read_text().splitlines()
    after = (folder / "params.yaml").read_text().splitlines()
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert old.partition("#")[2] == new.partition("#")[2]


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_data_set_model_and_classifier_combine(folder, data_set):
    preset.apply_presets([data_set, "sd14", "resnet18"])
    params = load_params()
    assert params.data.source == data_set and params.data.root == "data/downloads"
    assert params.model.path == "CompVis/stable-diffusion-v1-4" and params.train.architecture == "resnet18"


def test_every_fetched_source_has_one():
    assert set(SOURCES) - set(DATA_SETS) == {"fashion_mnist", "image_folder", "image_csv"}


def test_the_paper_is_the_paper(folder):
    """METHODS: 3,000 visits at 0.03, two decays of 0.01 a visit, U(-0.1, 0.1) at the start, 100 PNDM steps, s = 2."""
    preset.apply_presets(["stl10", "sd14", "resnet18"])
    p = load_params()
    assert (p.invert.num_tokens, p.invert.num_visits, p.invert.lr, p.invert.weight_decay) == (
        5,
        3000,
        0.03,
        0.02,
    )
    assert p.invert.init_std == pytest.approx(0.1 / 3**0.5, rel=1e-3)
    assert (p.generate.scheduler, p.generate.num_inference_steps, p.generate.guidance_scale) == (
        "pndm",
        100,
        2,
    )
    assert (p.data.resolution, p.model.resolution) == (96, 256)
    assert (p.train.num_steps, p.train.batch_size, p.train.warmup_steps) == (50_000, 128, 1000)


def test_a_wrong_one_changes_nothing(folder, monkeypatch, capsys):
    before = (folder / "params.yaml").read_text()
    (folder / "presets/bad.yaml").write_text("invert: {visits: 3}\n")
    with pytest.raises(UserError, match=r"params.yaml \+ bad: invert.visits: unknown parameter"):
        preset.apply_presets(["bad"])
    monkeypatch.setattr(sys, "argv", ["preset", "stl11"])
    with pytest.raises(SystemExit, match=r"no such preset; there are .* stl10"):
        preset.main()
    assert (folder / "params.yaml").read_text() == before
