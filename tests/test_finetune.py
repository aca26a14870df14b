"""The learner `finetune`, from tiny and from random weights that the tests save."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_classify import easy_images, in_project, labels_of  # noqa: F401
from torch import nn
from torchvision.models import resnet18

from dinv.classify import finetune
from dinv.classify.base import TrainingSet
from dinv.classify.finetune import Finetune, FinetuneParams, Resized
from dinv.classify.store import StoredClassifier, load_classifier, save_classifier
from dinv.errors import UserError
from dinv.features.extractors import convnet
from dinv.params import parse_params, read_yaml

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A convolution, a normalisation and a head, as resnet18 for tests."""

    def __init__(self, num_classes=1000):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


@pytest.fixture
def weights(in_project, monkeypatch):  # noqa: F811
    """Weights of `Tiny` with 5 classes in models/pretrained; `resnet18` means Tiny."""
    monkeypatch.setitem(finetune.NETWORKS, "resnet18", Tiny)
    torch.manual_seed(0)
    tensors = Tiny(5).state_dict()
    save_file(tensors, in_project / "tiny.safetensors")
    return tensors


def params(**update):
    cnn = tiny.train_params(seeds=[0]).model_dump(exclude={"learner", "architecture", "pretrained"})
    own = {
        "learner": "finetune",
        "network": "resnet18",
        "weights": "tiny.safetensors",
        "image_size": 24,
        "optimizer": "adamw",
        "head_steps": 4,
        "body_lr_scale": 0.1,
    }
    return FinetuneParams(**{**cnn, "lr": 0.05, **own, **update})


def fit(images=None, seed=0, **update):
    images = images or easy_images()
    fitted = Finetune.fit(TrainingSet([images], images), params(**update), seed, CPU, lambda n: None)
    return StoredClassifier("finetune", fitted, seed, len(images))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_learns_and_survives_a_file(weights, optimizer, channels, tmp_path):
    update = {"num_steps": 60, "optimizer": optimizer, "body_lr_scale": 1.0}
    result, test = fit(easy_images(channels=channels), **update), easy_images(seed=1, channels=channels)
    save_classifier(result, tmp_path / "c.safetensors")
    found = load_classifier(tmp_path / "c.safetensors").predict_proba(test.images, CPU)
    assert np.allclose(found, result.predict_proba(test.images, CPU))
    assert (found.argmax(1) == labels_of(test).numpy()).mean() > 0.9
    again = fit(easy_images(channels=channels), **update)
    for name, value in result.fitted.tensors.items():
        assert torch.equal(value, again.fitted.tensors[name]), name


def test_the_head_alone_learns_first_and_the_body_keeps_its_normalisation(weights):
    tensors = fit(head_steps=12).fitted.tensors
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "bn1.running_var"):
        assert torch.equal(tensors[f"body.network.{name}"], weights[name]), name
    moved = fit(head_steps=11).fitted.tensors
    assert not torch.equal(moved["body.network.conv1.weight"], weights["conv1.weight"])
    assert not torch.equal(moved["body.network.bn1.running_mean"], weights["bn1.running_mean"])
    assert not torch.equal(
        tensors["body.network.fc.weight"], fit(head_steps=11, seed=1).fitted.tensors["body.network.fc.weight"]
    )


def test_the_body_learns_slower(weights):
    def moved(scale):
        tensors = fit(head_steps=0, warmup_steps=0, num_steps=1, body_lr_scale=scale, weight_decay=0.0)
        return (
            (tensors.fitted.tensors["body.network.conv1.weight"] - weights["conv1.weight"]).abs().max().item()
        )

    assert moved(0.01) == pytest.approx(moved(1.0) / 100, rel=0.02)


def test_images_come_at_the_side_and_in_the_colours_that_the_network_knows(weights):
    seen = []
    classifier = finetune.create("resnet18", 3, 24, fetch=False)
    classifier.body.network.conv1.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    white = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
    classifier(white)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in finetune.IMAGENET)
    torch.testing.assert_close(seen[0], ((1 - mean) / std).expand(2, 3, 24, 24))


def test_torchvisions_resnet_is_taken_whole(in_project):  # noqa: F811
    """All but the last layer, the first convolution too."""
    torch.manual_seed(0)
    theirs = resnet18(num_classes=5).eval()
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, in_project / "r.safetensors")
    update = {"num_steps": 1, "warmup_steps": 0, "head_steps": 1, "weights": "r.safetensors", "batch_size": 2}
    ours = fit(easy_images(n=6), image_size=32, **update).fitted.tensors
    for name, value in theirs.state_dict().items():
        assert name.startswith("fc.") or torch.equal(ours[f"body.network.{name}"], value), name
    assert ours["body.network.fc.weight"].shape == (3, 512)


def test_another_first_layer_is_refused(weights, in_project):  # noqa: F811
    """Unlike cnn, whose images may have another number of channels."""
    save_file({**weights, "conv1.weight": torch.zeros(8, 1, 3, 3)}, in_project / "grey.safetensors")
    with pytest.raises(
        UserError, match=r"weights = 'grey\.safetensors': conv1\.weight is missing, superfluous"
    ):
        fit(weights="grey.safetensors")
    with pytest.raises(UserError, match=r"weights = 'gone\.safetensors': no such file in models/pretrained"):
        fit(weights="gone.safetensors")


def test_without_timm_its_networks_are_refused_in_one_line(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^network = 'timm/vit_tiny': timm is not installed; pip install -e"):
        fit(network="timm/vit_tiny", weights="timm")


def test_timms_networks_come_with_their_own_normalisation(weights, monkeypatch):
    asked = []

    def create_model(name, pretrained, num_classes):
        asked.append((name, pretrained))
        return Tiny(num_classes)

    config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    data = SimpleNamespace(resolve_model_data_config=lambda body: config)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data))
    result = fit(network="timm/tiny.in1k", weights="timm")
    result.predict_proba(easy_images().images, CPU)
    assert asked == [("tiny.in1k", True), ("tiny.in1k", False)], "fetched to train, not to predict"
    assert result.fitted.tensors["std"].flatten().tolist() == [0.25] * 3
    fit(network="timm/tiny.in1k", weights="tiny.safetensors")
    assert asked[2:] == [("tiny.in1k", False)]


def test_what_decides_the_result_is_in_the_settings(weights, in_project):  # noqa: F811
    def of(mixes=False, **update):
        return Finetune.settings(params(**update), mixes, CPU)

    first = of()
    assert first != of(head_steps=3) and first != of(body_lr_scale=0.2) and first == of(real_fraction=0.2)
    save_file({**weights, "fc.bias": torch.ones(5)}, in_project / "tiny.safetensors")
    assert of() != first


def test_in_params_yaml():
    raw = read_yaml(tiny.ROOT / "params.yaml")
    raw["arms"]["tuned"] = {"images": "data/real/train", "real": False, "learner": "tuned"}
    block = params().model_dump()
    for update, message in (
        ({"weights": "timm"}, r"train\.tuned: weights = 'timm' needs network: timm/NAME"),
        ({"head_steps": 13}, r"train\.tuned: head_steps must not be above num_steps \(12\)"),
        ({"network": "vgg"}, r"train\.tuned\.network = 'vgg'"),
    ):
        raw["train"]["tuned"] = {**block, **update}
        with pytest.raises(UserError, match=message):
            parse_params(raw)
    raw["train"]["tuned"] = block
    assert parse_params(raw).train["tuned"].image_size == 24


def test_images_at_their_side_are_left_alone():
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(Resized(nn.Identity(), 8)(images), images)


ENCODER = {"network": "convnet", "weights": "models/mini-sd/encoder", "image_size": 32}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_shipped_network_starts_from_the_features_that_a_probe_sees(channels, monkeypatch, tmp_path):
    monkeypatch.chdir(tiny.ROOT)
    images = easy_images(n=6, side=32, channels=channels)
    result = fit(images, num_steps=1, warmup_steps=0, head_steps=1, batch_size=2, dtype="float32", **ENCODER)
    save_classifier(result, tmp_path / "c.safetensors")
    monkeypatch.chdir(tmp_path)  # a finished classifier needs no weights besides its own
    stored = load_classifier(tmp_path / "c.safetensors").fitted
    head = {name: stored.tensors[f"body.network.head.{name}"] for name in ("weight", "bias")}
    pixels = images.images.permute(0, 2, 3, 1).numpy()
    features = convnet(tiny.ROOT / ENCODER["weights"], CPU)(pixels)
    expected = (features @ head["weight"].T + head["bias"]).softmax(1)
    found = Finetune.load(stored.tensors, stored.build, CPU)(images.images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_shipped_network_learns_and_its_weights_are_part_of_what_a_classifier_hangs_on(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    test = easy_images(seed=1, channels=3)
    result = fit(easy_images(channels=3), num_steps=60, body_lr_scale=1.0, **ENCODER)
    assert (result.predict_proba(test.images, CPU).argmax(1) == labels_of(test).numpy()).mean() > 0.9
    known = [
        Finetune.settings(params(**{**ENCODER, "weights": f"models/{name}"}), False, CPU)["weights"]
        for name in ("mini-sd/encoder", "satellite-features")
    ]
    assert known[0] != known[1] and all(len(digest) == 64 for digest in known)
    with pytest.raises(ValueError, match="DVC would not see when it changes"):
        params(**{**ENCODER, "weights": "elsewhere/encoder"})
    with pytest.raises(UserError, match=r"models/pretrained/none: not a feature network of dinv"):
        fit(**{**ENCODER, "weights": "models/pretrained/none"})
