"""The learner `probe`: scikit-learn's answers without scikit-learn's files, on features that are computed once."""

import json
import math
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from test_classify import easy_images, labels_of, one_hot

from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.cross_validation import splits
from dinv.classify.frozen import UNetFeatures, find_network
from dinv.classify.heads import fit_logistic, fit_svc, logistic_scores, svc_scores, weighted_rows
from dinv.classify.probe import Probe, ProbeParams, features_of, image_weights, standardised
from dinv.classify.store import StoredClassifier, load_classifier, load_classifiers, save_classifier
from dinv.classify.strength import best_strength
from dinv.errors import UserError
from dinv.features.worker import FeatureWorker
from dinv.images.image_set import ImageSetReader
from dinv.params import parse_params, read_yaml

CPU = torch.device("cpu")
SHIPPED = {"network": "convnet", "path": "models/fashion-features"}


def params(**update):
    plain = {
        "learner": "probe",
        "features": SHIPPED,
        "classifier": "svc",
        "kernel": "rbf",
        "C": 10.0,
        "real_fraction": 0.5,
        "synthetic_loss_weight": 1.0,
        "min_confidence": 0.0,
        "seeds": [0],
    }
    return ProbeParams(**{**plain, **update})


def fit(*sources, seed=0, **update):
    data = TrainingSet(sources, sources[0])
    fitted = Probe.fit(data, params(**update), seed, CPU, lambda n: None)
    return StoredClassifier("probe", fitted, seed, sum(map(len, sources)))


def accuracy(classifier, images):
    return (classifier.predict_proba(images.images, CPU).argmax(1) == labels_of(images).numpy()).mean()


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tiny.ROOT)


@pytest.fixture
def unet(grey_model_folder):
    return {
        "network": "unet",
        "path": str(grey_model_folder),
        "dtype": "float32",
        "resolution": 16,
        "block": "mid",
        "timestep": 100,
        "pooling": "none",
    }


def features(n, num_classes, seed=0):
    """Float64 features of overlapping classes, with labels and weights."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, n)
    y[:num_classes] = range(num_classes)
    x = rng.normal(size=(n, 5)) + 0.8 * y[:, None] * rng.normal(size=5)
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(rng.uniform(0.2, 3, n))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 6), st.sampled_from(["linear", "rbf"]), st.sampled_from([0.1, 10.0]), st.integers(0, 99)
)
def test_machines_decide_as_scikit_learns(num_classes, kernel, c, seed):
    x, y, weight = features(60, num_classes, seed)
    theirs = SVC(C=c, kernel=kernel, break_ties=num_classes > 2).fit(x, y, weight)
    new = torch.randn(200, 5, dtype=torch.float64) * 3
    ours = svc_scores(fit_svc(x, y, weight, c, kernel), new, kernel)
    assert np.array_equal(ours.argmax(1), theirs.predict(new))
    expected = theirs.decision_function(new)
    if num_classes > 2:
        assert np.allclose(ours, expected, atol=1e-6)
    else:
        assert np.array_equal(ours[:, 1] > ours[:, 0], expected > 0)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_logistic_regression_has_scikit_learns_probabilities(num_classes):
    x, y, weight = features(80, num_classes)
    theirs = LogisticRegression(C=0.5, max_iter=10_000).fit(x, y, weight)
    ours = logistic_scores(fit_logistic(x, y, weight, 0.5), x).softmax(1)
    assert np.allclose(ours, theirs.predict_proba(x), atol=1e-9)


@pytest.mark.parametrize(
    ("classifier", "kernel"), [("svc", "rbf"), ("svc", "linear"), ("logistic", "linear")]
)
def test_a_probe_learns_and_survives_a_file(classifier, kernel, tmp_path):
    """Predictions from the file are scikit-learn's own, on the same features."""
    train, test = easy_images(), easy_images(seed=1)
    probe = fit(train, classifier=classifier, kernel=kernel)
    assert accuracy(probe, test) > 0.95
    save_classifier(probe, tmp_path / "p.safetensors")
    loaded = load_classifier(tmp_path / "p.safetensors")
    found = loaded.predict_proba(test.images, CPU)
    assert np.allclose(found.sum(1), 1, atol=1e-6)
    network = find_network(params().features)
    x, scaling = standardised(features_of(train.images, network, CPU), torch.ones(60).double())
    new = (features_of(test.images, network, CPU) - scaling["mean"]) / scaling["std"]
    kind = {"svc": SVC(C=10, kernel=kernel), "logistic": LogisticRegression(C=10, max_iter=10_000)}
    theirs = kind[classifier].fit(x, labels_of(train))
    assert np.array_equal(found.argmax(1), theirs.predict(new))
    json.dumps(loaded.fitted.build)


def test_every_seed_gives_the_same_probe():
    first, again, other = fit(easy_images()), fit(easy_images()), fit(easy_images(), seed=1)
    for name, value in first.fitted.tensors.items():
        assert torch.equal(value, again.fitted.tensors[name]) and torch.equal(
            value, other.fitted.tensors[name]
        )


def test_features_are_computed_once(monkeypatch):
    """Another C, another kernel, a part of the images, new predictions: no network runs again."""
    train, test = easy_images(), easy_images(seed=1)
    first = fit(train)
    before = first.predict_proba(test.images, CPU)
    monkeypatch.setattr(FeatureWorker, "compute", mock.Mock(side_effect=AssertionError("computed again")))
    assert np.array_equal(first.predict_proba(test.images, CPU), before)
    fit(train, C=1.0, classifier="logistic", kernel="linear")
    rows = torch.arange(59, 0, -2)
    fit(LabelledImages(train.images[rows], train.targets[rows]))
    with pytest.raises(AssertionError, match="computed again"):
        fit(easy_images(seed=2))


def test_real_images_have_their_share_of_the_weight():
    real, made = easy_images(n=30), easy_images(n=90)
    data = TrainingSet([real, made], real)
    weights = image_weights(data, params(real_fraction=0.25))
    assert weights.mean().item() == pytest.approx(1) and weights[:30].sum().item() == pytest.approx(30)
    half = image_weights(data, params(real_fraction=0.5, synthetic_loss_weight=0.5))
    assert (half[:30].sum() / half[30:].sum()).item() == pytest.approx(2)
    assert torch.equal(image_weights(TrainingSet([made], real), params()), torch.ones(90).double())


@pytest.mark.parametrize(("weight", "winner"), [(0.02, 0), (50.0, 1)])
@pytest.mark.parametrize("classifier", ["svc", "logistic"])
def test_the_loss_weight_decides_between_contradicting_sources(weight, winner, classifier):
    images = easy_images(n=30).images
    real = LabelledImages(images, one_hot(torch.zeros(30).long()))
    made = LabelledImages(images, one_hot(torch.ones(30).long()), torch.arange(30))
    probe = fit(real, made, classifier=classifier, kernel="linear", C=0.01, synthetic_loss_weight=weight)
    assert (probe.predict_proba(images, CPU).argmax(1) == winner).all()
    assert (probe.predict_proba(images, CPU)[:, 2] == 0).all(), "a class without images"


def test_an_image_of_two_classes_counts_as_both():
    targets, weights = torch.tensor([[0.75, 0.25], [0.0, 1.0]]), torch.tensor([2.0, 1.0])
    rows, labels, weight = weighted_rows(targets, weights)
    assert rows.tolist() == [0, 0, 1] and labels.tolist() == [0, 1, 1] and weight.tolist() == [1.5, 0.5, 1.0]
    soft = easy_images()
    doubtful = LabelledImages(soft.images, 0.4 * soft.targets + 0.2)
    assert accuracy(fit(doubtful), easy_images(seed=1)) > 0.95


def test_one_class_only_is_refused():
    images = easy_images(n=6)
    one = LabelledImages(images.images, one_hot(torch.zeros(6).long()))
    with pytest.raises(UserError, match="learner probe: the training images are of one class"):
        fit(one)


@pytest.mark.parametrize("block", ["mid", "down_0", "up_1"])
def test_the_generators_own_features(unet, block):
    """Of the block that was asked for; they do not depend on the batch, and equal images have equal ones."""
    network = find_network(UNetFeatures(**{**unet, "block": block}))
    extract = network.open(CPU)
    images = tiny.random_images(3, 16, 1)
    found = extract(images[[0, 1, 2, 0]])
    assert found.shape == (4, {"mid": 16 * 16, "down_0": 8 * 16, "up_1": 8 * 64}[block])
    assert torch.allclose(found[0], found[3], atol=1e-5) and not torch.allclose(found[0], found[1], atol=1e-3)
    assert torch.allclose(extract(images[1:2]), found[1:2], atol=1e-4)
    pooled = find_network(UNetFeatures(**{**unet, "block": block, "pooling": "mean"})).open(CPU)(images)
    channels = pooled.shape[1]
    assert torch.allclose(pooled, found[:3].view(3, channels, -1).mean(2), atol=1e-4)


def test_features_at_the_mid_block_are_those_of_a_whole_pass(unet, grey_model_folder):
    """By another way to the same: all of the UNet runs, and residuals are looked at with diffusers' own names."""
    from dinv.diffusion.features import keyed_noise

    model, images = tiny.load_tiny(grey_model_folder), tiny.random_images(2, 16, 1)
    z = model.encode(torch.from_numpy(images)).mean
    z_t = model.add_noise(z, keyed_noise(images, z.shape[1:]), torch.full((2,), 100))
    kept = []
    model.unet.mid_block.register_forward_hook(lambda *a: kept.append(a[2]))
    model.predict(z_t, torch.full((2,), 100), model.empty_prompt_embeds(5).expand(2, -1, -1))
    found = find_network(UNetFeatures(**unet)).open(CPU)(images)
    assert torch.allclose(found, kept[0].flatten(1), atol=1e-5)


def test_a_probe_of_the_generator_learns_and_knows_its_network(unet, tmp_path):
    probe = fit(easy_images(), features=unet)
    assert accuracy(probe, easy_images()) > 0.9, "what it has seen: the weights are random"
    other = tiny.save_tiny_model(tmp_path / "other", num_channels=1, text=False, seed=1)
    save_classifier(probe, tmp_path / "p.safetensors")
    text = (tmp_path / "p.safetensors").read_bytes()
    assert unet["path"].encode() in text
    stored = load_classifier(tmp_path / "p.safetensors")
    moved = {**stored.fitted.build, "features": {**unet, "path": str(other)}}
    with pytest.raises(UserError, match=r"not the network that this probe was trained with; run dvc repro$"):
        Probe.load(stored.fitted.tensors, moved, CPU)(easy_images().images)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"block": "down_7"}, r"features\.block = 'down_7': this UNet has down_0, down_1, mid, up_0, up_1"),
        ({"timestep": 1000}, r"features\.timestep = 1000: must be below 1000"),
        ({"path": "models/absent"}, r"model\.path: models/absent: no such folder"),
    ],
)
def test_what_a_model_does_not_have_is_refused(unet, update, message):
    with pytest.raises(UserError, match=message):
        fit(easy_images(), features={**unet, **update})


def test_what_decides_the_result_is_in_the_settings(unet):
    def of(mixes=False, **update):
        return Probe.settings(params(**update), mixes, CPU)

    assert of() != of(C=1.0) and of() != of(features=unet)
    assert of(features=unet) != of(features={**unet, "timestep": 50})
    assert of() == of(real_fraction=0.25) and of(mixes=True) != of(mixes=True, real_fraction=0.25)


def test_a_probe_in_params_yaml(unet):
    raw = read_yaml(tiny.ROOT / "params.yaml")
    block = params(features=unet).model_dump()
    raw["train"]["probe"] = block
    raw["arms"]["probe"] = {"images": "data/real/train", "real": False, "learner": "probe"}
    with pytest.raises(
        UserError, match=r"train\.probe: '.*': DVC would not see .*; use model\.path = 'models/fa"
    ):
        parse_params(raw)
    raw["model"]["path"] = unet["path"]
    assert parse_params(raw).train["probe"].features.block == "mid"
    for update, message in (
        ({"kernel": "rbf", "classifier": "logistic"}, r"train\.probe: kernel = 'rbf' needs classifier: svc"),
        ({"features": {**unet, "blok": 1}}, r"train\.probe\.features\.unet\.blok: unknown .*mean block\?"),
        ({"features": {**unet, "network": "vgg"}}, r"train\.probe\.features"),
        ({"features": {"network": "clip", "path": "clip"}}, r"train\.probe\.features.*DVC would not see"),
        ({"C": -1.0}, r"train\.probe\.C.*neither a number greater than 0 nor cross_validation"),
        ({"C": "search"}, r"train\.probe\.C.*neither a number greater than 0 nor cross_validation"),
    ):
        raw["train"]["probe"] = {**block, **update}
        with pytest.raises(UserError, match=message):
            parse_params(raw)


def test_the_strength_is_searched_as_clips_paper_does():
    """15 tries at most find the peak of what has one; of equals the smallest is taken."""
    for peak in (3e-4, 1.0, 1e6):
        tried = []

        def quality(c, tried=tried, peak=peak):
            tried.append(c)
            return -abs(math.log10(c / peak))

        assert abs(math.log10(best_strength(quality) / peak)) <= 1 / 16
        assert len(tried) == len(set(tried)) <= 15
    assert best_strength(lambda c: 0) == 1e-6


@pytest.mark.parametrize("classifier", ["svc", "logistic"])
def test_a_strength_is_chosen_by_images_that_are_held_out(classifier, monkeypatch):
    """Grid search over the same folds by scikit-learn's own classifiers finds the same."""
    grid = (0.01, 1.0, 100.0)
    monkeypatch.setattr("dinv.classify.probe.best_strength", lambda quality: max(grid, key=quality))
    images, extra = easy_images(n=30), tiny.random_images(30, 16, 1, seed=3)
    mixed = (images.images // 3 + torch.from_numpy(extra).permute(0, 3, 1, 2) // 2).to(torch.uint8)
    noisy = LabelledImages(mixed, images.targets)
    found = fit(noisy, classifier=classifier, kernel="linear", C="cross_validation")
    x, y = features_of(noisy.images, find_network(params().features), CPU), labels_of(noisy)
    best = {}
    for c in grid:
        right, likelihood = 0, 0.0
        for split in splits(TrainingSet([noisy], noisy)):
            kept, rows = split.kept[0], split.scored
            mean, std = x[kept].mean(0), x[kept].std(0, correction=0)
            std = torch.where(std > 1e-6, std, 1.0)
            a, b = (x[kept] - mean) / std, (x[rows] - mean) / std
            if classifier == "logistic":
                p = LogisticRegression(C=c, max_iter=10_000).fit(a, y[kept]).predict_proba(b)
            else:
                p = SVC(C=c, kernel="linear").fit(a, y[kept]).decision_function(b)
                p = np.exp(p) / np.exp(p).sum(1, keepdims=True)
            right += (p.argmax(1) == y[rows].numpy()).sum()
            likelihood += np.log(p[range(len(p)), y[rows]]).sum()
        best[c] = right, likelihood
    expected = fit(noisy, classifier=classifier, kernel="linear", C=max(grid, key=best.get))
    for name, value in expected.fitted.tensors.items():
        assert torch.equal(found.fitted.tensors[name], value)
    assert len({round(v[1], 6) for v in best.values()}) > 1, "strengths differ"


def test_a_strength_needs_two_images_of_a_class():
    with pytest.raises(
        UserError, match=r"C = 'cross_validation': no image can be held out, as no class has two"
    ):
        fit(easy_images(n=3), C="cross_validation")


@pytest.mark.slow
def test_stages_train_and_know_probes(finished, tmp_path, monkeypatch):
    """Of the generator's features, on real and on generated images, filtered by other probes."""
    project = finished.copy(tmp_path / "copy")
    yaml, path = YAML(), project.root / "params.yaml"
    document = yaml.load(path.read_text())
    features = {"network": "unet", "path": "models/fashion-ldm", "dtype": "float32", "resolution": 16}
    features |= {"block": "mid", "timestep": 10, "pooling": "none"}
    document["train"]["probe"] = params(features=features, min_confidence=1e-6).model_dump()
    document["arms"]["probe"] = {"images": "data/generated/inversion", "real": True, "learner": "probe"}
    with path.open("w") as file:
        yaml.dump(document, file)
    project.stage("train", "probe", ok=True)
    monkeypatch.chdir(project.root)
    (probe,) = load_classifiers(project.root / "data/classifiers/probe")
    real = ImageSetReader(project.root / "data/real/train").mapped()
    assert (probe.predict_proba(real.tensor(), CPU).argmax(1) == real.labels).mean() > 0.2
    again = project.stage("train", "probe", ok=True)
    assert "1 of 1 parts are already finished" in again.stdout + again.stderr


@pytest.mark.parametrize(("views", "num_views"), [("none", 1), ("horizontal_flip", 2), ("dihedral", 8)])
def test_features_are_means_over_views(views, num_views):
    images = easy_images(n=12).images
    network = find_network(params(features={**SHIPPED, "views": views}).features)
    one = find_network(params().features)
    both = [images, images.flip(3)][:num_views]
    shown = [view.rot90(k, (2, 3)) for view in both for k in range(max(1, num_views // 2))]
    expected = torch.stack([features_of(view, one, CPU) for view in shown]).mean(0)
    found = features_of(images, network, CPU)
    assert len(shown) == num_views and torch.allclose(found, expected, atol=1e-5)
    assert (network.digest == one.digest) == (views == "none")


def test_a_probe_on_all_eight_views_does_not_see_how_an_image_lies(unet):
    real = easy_images(n=30)
    for features in (SHIPPED, {**unet, "pooling": "mean"}):
        eight = fit(real, features={**features, "views": "dihedral"})
        one, lying = fit(real, features=features), real.images.rot90(1, (2, 3)).flip(3)
        ahead = eight.predict_proba(real.images, CPU)
        assert np.allclose(eight.predict_proba(lying, CPU), ahead, atol=1e-4)
        assert not np.allclose(one.predict_proba(lying, CPU), one.predict_proba(real.images, CPU), atol=1e-3)


def test_views_that_there_are_not():
    with pytest.raises(ValueError, match="dihedral"):
        params(features={**SHIPPED, "views": "vertical"})
