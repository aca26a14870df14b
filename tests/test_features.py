"""Networks that turn images into features: the shipped one, and tiny random ones that the tests save."""

import json
import shutil
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)

from dinv.errors import UserError
from dinv.features.cache import Extraction, extract
from dinv.features.extractors import load_extractor
from dinv.features.location import locate, location_digest
from dinv.features.network import load_network
from dinv.features.params import FeatureNetwork, is_watched
from dinv.features.worker import FeatureWorker, load_features
from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.sources.params import DataParams
from dinv.sources.task import load_task

CPU = torch.device("cpu")
SHIPPED = tiny.ROOT / "models/fashion-features"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def save_dinov2(folder):
    Dinov2Model(Dinov2Config(**SMALL)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size).save_pretrained(folder)
    return folder


def save_clip(folder):
    config = CLIPVisionConfig(**SMALL, intermediate_size=16, projection_dim=6)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    return folder


def save_inception(folder):
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"), mock.patch("torch.load"):
        network = FeatureExtractorInceptionV3("random", ["2048"], "unused")
    folder.mkdir()
    torch.save(network.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {
        "convnet": (SHIPPED, 128),
        "inception": (save_inception(folder / "inception"), 2048),
        "dinov2": (save_dinov2(folder / "dinov2"), 16),
        "clip": (save_clip(folder / "clip"), 6),
    }


@pytest.mark.parametrize("name", ["convnet", "inception", "dinov2", "clip"])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (40, 3)])
def test_any_images_have_features_that_do_not_depend_on_the_batch(networks, name, side, channels):
    location, width = networks[name]
    extract = load_extractor(name, location, CPU)
    images = tiny.random_images(3, side, channels)
    together = extract(images)
    assert together.shape == (3, width) and together.dtype == torch.float32 and not together.requires_grad
    scale = together.abs().max().item()
    assert torch.allclose(together[1:2], extract(images[1:2]), atol=1e-3 * scale)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_half_precision_is_how_weights_are_stored_not_how_features_are_computed(networks, name, tmp_path):
    location, _ = networks[name]
    images = tiny.random_images(3, 28)
    features = []
    for dtype in (torch.float16, torch.float32):
        folder = shutil.copytree(location, tmp_path / str(dtype))
        tensors = load_tensors(folder / "model.safetensors")
        rounded = {key: value.half().to(dtype) for key, value in tensors.items()}
        save_tensors(rounded, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
        features.append(load_extractor(name, folder, CPU)(images))
    assert torch.equal(*features)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_a_network_that_lacks_a_weight_is_refused(networks, name, tmp_path):
    folder = shutil.copytree(networks[name][0], tmp_path / name)
    tensors = load_tensors(folder / "model.safetensors")
    tensors.pop(next(key for key in sorted(tensors) if "layer" in key))
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"{name} at .* cannot be loaded \(.* is missing\)"):
        load_extractor(name, folder, CPU)


def test_inception_features_are_torch_fidelitys(networks):
    location, _ = networks["inception"]
    theirs = FeatureExtractorInceptionV3("random", ["2048"], str(location))
    images = tiny.random_images(2, 32, 3)
    (expected,) = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.equal(load_extractor("inception", location, CPU)(images), expected)


def test_inception_weights_are_not_unpickled(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (exec, ("raise SystemExit('ran')",))

    torch.save({"x": Harmful()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"inception at .*w\.pth cannot be loaded"):
        load_extractor("inception", tmp_path / "w.pth", CPU)


def test_the_shipped_network_knows_clothes_that_it_has_not_seen():
    """Its card says 92.1 % of the labelled pool."""
    update = {"num_per_class": 20, "root": str(tiny.ROOT / tiny.PARAMS.data.root)}
    real = load_task(DataParams(**{**tiny.PARAMS.data.model_dump(), **update})).train.load()
    network, extract = load_network(SHIPPED), load_extractor("convnet", SHIPPED, CPU)
    predicted = network.head(extract(real.images)).argmax(1).numpy()
    assert (predicted == real.labels).mean() > 0.85


def test_grey_and_repeated_grey_images_are_the_same_to_it():
    grey = tiny.random_images(2, 32, 1)
    extract = load_extractor("convnet", SHIPPED, CPU)
    assert torch.allclose(extract(grey), extract(np.repeat(grey, 3, axis=3)), atol=1e-4)


def test_a_network_is_known_by_its_bytes(tmp_path):
    first = location_digest(save_clip(tmp_path / "a"))
    assert first != location_digest(save_clip(tmp_path / "b"))
    assert first == location_digest(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "location", "message"),
    [
        ("convnet", "models/absent", "no such path; restore the folder"),
        ("inception", "weights.pth", "no such path; fetch weights-inception-2015-12-05"),
        ("dinov2", "models/dinov2", "no such path; give a folder, or a YAML file with repo_id and revision"),
        ("clip", "models/clip.yaml", "no such path; give a folder, or a YAML file with repo_id and revision"),
    ],
)
def test_a_network_that_is_not_there_is_named_with_a_remedy(name, location, message):
    with pytest.raises(UserError, match=f"measure.features: {name} at '{location}': {message}"):
        locate(name, location)


def test_a_network_in_the_hubs_cache_is_found_without_the_hub(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--someone--dinov2/snapshots" / commit
    save_dinov2(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pin = tmp_path / "dinov2.yaml"
    pin.write_text(f"{{repo_id: someone/dinov2, revision: {commit}}}")
    assert locate("dinov2", str(pin), local_files_only=True) == snapshot


@pytest.fixture
def clothes(tmp_path, monkeypatch):
    """An image set of 250 images in files, with a current folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    images = tiny.random_images(250, 16, 1)
    labels = np.arange(250, dtype=np.int64) % 2
    save_image_set(ImageSet(images, labels, [f"{i}" for i in range(250)], ["a", "b"]), tmp_path / "set")
    return ImageSetReader(tmp_path / "set"), images


SHIPPED_NETWORK = FeatureNetwork(network="convnet", path=str(SHIPPED))
HERE = tiny.PARAMS.execution


def test_extracted_features_are_those_of_the_rows_in_their_order(clothes, tmp_path):
    reader, images = clothes
    rows = [3, 240, 7, *range(100, 320 - 100)]
    found = extract(reader, rows, Extraction.of(SHIPPED_NETWORK), HERE, tmp_path / "out")
    expected = load_extractor("convnet", SHIPPED, CPU)(images[rows]).numpy()
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-4)
    assert np.array_equal(load_features(tmp_path / "out"), found)


def test_pixels_and_weights_decide_what_is_extracted_again(clothes, tmp_path, monkeypatch):
    """Not the label, the id, the folder or who asks: learners and measure share finished parts."""
    reader, images = clothes
    extraction = Extraction.of(SHIPPED_NETWORK)
    first = extract(reader, range(20), extraction, HERE)
    monkeypatch.setattr(FeatureWorker, "compute", mock.Mock(side_effect=AssertionError("extracted again")))
    named = ImageSet(images[:20], np.zeros(20, np.int64), [f"x{i}" for i in range(20)], ["only"])
    save_image_set(named, tmp_path / "other")
    again = extract(ImageSetReader(tmp_path / "other"), range(20), extraction, HERE, tmp_path / "out")
    assert np.array_equal(first, again)
    assert np.array_equal(extract(reader, [5, 2], extraction, HERE), first[[5, 2]])
    shutil.copytree(SHIPPED, tmp_path / "moved")
    moved = Extraction.of(FeatureNetwork(network="convnet", path=str(tmp_path / "moved")))
    assert np.array_equal(extract(reader, range(20), moved, HERE), first)
    weights = load_file(tmp_path / "moved/model.safetensors")
    save_file(
        {k: np.asarray(v + v.dtype.type(1)) for k, v in weights.items()}, tmp_path / "moved/model.safetensors"
    )
    changed = Extraction.of(FeatureNetwork(network="convnet", path=str(tmp_path / "moved")))
    with pytest.raises(AssertionError, match="extracted again"):
        extract(reader, range(20), changed, HERE)
    brighter = ImageSet(images[:20] // 2, named.labels, named.ids, named.class_names)
    save_image_set(brighter, tmp_path / "dark")
    with pytest.raises(AssertionError, match="extracted again"):
        extract(ImageSetReader(tmp_path / "dark"), range(20), extraction, HERE)


@pytest.mark.parametrize("damage", ["truncated", "another"])
def test_damaged_networks_are_refused(tmp_path, damage):
    folder = save_clip(tmp_path / "clip")
    if damage == "truncated":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
        name = "clip"
    else:
        name = "convnet"
    with pytest.raises(UserError, match=f"{folder}"):
        load_extractor(name, folder, CPU)


def test_watched_paths_lie_in_watched_folders(monkeypatch):
    monkeypatch.setattr("dinv.features.params.WATCHED", ("models/pretrained", "models/sd/clip"))
    for path in ("models/pretrained", "models/pretrained/a/b.yaml", "models/sd/clip", "models/sd/clip/x"):
        assert is_watched(path), path
    for path in (
        "models",
        "models/sd",
        "models/sd/unet",
        "models/pretrained2",
        "models/pretrained/../x",
        "/models/pretrained",
    ):
        assert not is_watched(path), path
