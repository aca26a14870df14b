"""Presets are valid, keep comments, and change only what they name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from ruamel.yaml import YAML

from dinv import preset
from dinv.diffusion.loading import load_model
from dinv.errors import UserError
from dinv.features.extractors import load_extractor
from dinv.params import load_params
from dinv.sources.registry import SOURCES
from dinv.sources.task import load_task

NAMES = sorted(path.stem for path in (tiny.ROOT / "presets").glob("*.yaml"))
DATA_SETS = sorted(set(NAMES) & set(SOURCES))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(tiny.ROOT / "params.yaml", tmp_path)
    shutil.copytree(tiny.ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flat(values, prefix=""):
    """Nested sections and blocks as one dictionary with dotted names; blocks in a list by their places."""
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {prefix: values}
    return {name: v for k, inner in values.items() for name, v in flat(inner, f"{prefix}.{k}").items()}


def written(name):
    return flat(YAML(typ="safe").load((tiny.ROOT / f"presets/{name}.yaml").read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_valid_and_changes_what_it_names_and_no_more(folder, name):
    preset.apply_presets([name])
    before, found = flat(tiny.PARAMS.model_dump()), flat(load_params().model_dump())
    wanted = before | written(name)
    assert {key: found[key] for key in wanted} == wanted
    # A block that is new may leave keys out that have defaults; nothing else comes along.
    blocks = {tuple(key.split(".")[:3]) for key in written(name).keys() - before.keys()}
    assert {tuple(key.split(".")[:3]) for key in found.keys() - wanted.keys()} <= blocks
    texts = [(tiny.ROOT / "params.yaml").read_text(), (folder / "params.yaml").read_text()]
    comments = [[line.partition("#")[2] for line in text.splitlines() if "#" in line] for text in texts]
    assert comments[0] == comments[1] and (blocks or len(set(text.count("\n") for text in texts)) == 1)


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_data_set_model_and_classifier_combine(folder, data_set):
    preset.apply_presets([data_set, "sd14", "resnet18"])
    params = load_params()
    assert params.data.source == data_set and params.data.root == "data/downloads"
    assert params.model.path == "models/stable-diffusion-v1-4.yaml"
    assert params.train["cnn"].architecture == "resnet18"


def test_every_fetched_source_has_one():
    assert set(SOURCES) - set(DATA_SETS) == {"fashion_mnist", "image_folder", "image_csv", "parquet"}


def test_the_paper_is_the_paper(folder):
    """METHODS: 3,000 visits at 0.03, two decays of 0.01 a visit, U(-0.1, 0.1) at the start, 100 PNDM steps, s = 2."""
    preset.apply_presets(["stl10", "sd14", "resnet18"])
    p = load_params()
    i, g, t = p.invert["embeddings"], p.generate["inversion"], p.train["cnn"]
    assert (i.num_tokens, i.num_visits, i.lr, i.weight_decay) == (5, 3000, 0.03, 0.02)
    assert i.init_std == pytest.approx(0.1 / 3**0.5, rel=1e-3)
    assert (g.scheduler, g.num_inference_steps, g.guidance_scale) == ("pndm", 100, 2)
    assert (p.data.resolution, p.model.resolution) == (96, 256)
    assert (t.num_steps, t.batch_size, t.warmup_steps) == (50_000, 128, 1000)


def test_a_wrong_one_changes_nothing(folder):
    before = (folder / "params.yaml").read_text()
    (folder / "presets/bad.yaml").write_text("invert: {embeddings: {visits: 3}}\n")
    with pytest.raises(UserError, match=r"params.yaml \+ bad: invert.embeddings.visits: unknown parameter"):
        preset.apply_presets(["bad"])
    with pytest.raises(UserError, match=r"no such preset; there are .* stl10"):
        preset.apply_presets(["stl11"])
    assert (folder / "params.yaml").read_text() == before


def test_a_block_that_is_not_there_is_added_whole(folder):
    """A preset may bring a block of its own, such as other features."""
    features = "{network: clip, path: models/clip.yaml}"
    (folder / "presets/clip.yaml").write_text(f"measure: {{features: {{clip: {features}}}}}\n")
    preset.apply_presets(["clip"])
    assert list(load_params().measure.features) == ["domain", "clip"]


@pytest.mark.parametrize(("task", "num_classes"), [("satellite", 10), ("cells", 8)])
def test_a_bundled_task_has_images_a_model_and_features_in_colour(task, num_classes, folder, monkeypatch):
    preset.apply_presets([task])
    params = load_params()
    monkeypatch.chdir(tiny.ROOT)
    data = load_task(params.data)
    assert len(data.train.class_names) == num_classes
    assert (
        len(data.train) == 20 * num_classes and len(data.test) == 2000 and len(data.val) >= 80 * num_classes
    )
    images = data.train.take(range(4)).images
    model = load_model(Path(params.model.path), params.model, torch.device("cpu"))
    assert model.empty_prompt_embeds(5).shape == (5, 128)
    back = model.decode(model.encode(torch.from_numpy(images)).mean).numpy()
    assert back.shape == images.shape == (4, 32, 32, 3)
    assert np.abs(back.astype(float) - images).mean() < 8  # of 255 levels: it knows such images
    network = params.measure.features["domain"]
    extract = load_extractor(network.network, Path(network.path), torch.device("cpu"))
    assert extract(images).shape == (4, 128)
