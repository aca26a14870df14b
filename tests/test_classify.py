"""Classifiers, augmentation, the training loop and the metrics."""

import math

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import balanced_accuracy_score
from torchvision import models as torchvision_models

from dinv.classify.architectures import ARCHITECTURES, create_classifier, load_pretrained
from dinv.classify.augment import auto_augment, mix, random_crop, random_horizontal_flip
from dinv.classify.confidence import keep_confident, label_confidence
from dinv.classify.params import FIXED_WIDTHS
from dinv.classify.store import load_classifier, load_classifiers, save_classifier
from dinv.classify.train import (
    LabelledImages,
    batch_sizes,
    index_stream,
    learning_rate,
    make_batches,
    pixel_statistics,
    predict_proba,
    train_classifier,
    weighted_cross_entropy,
)
from dinv.errors import UserError
from dinv.images.image_set import ImageSet
from dinv.metrics.accuracy import (
    balanced_accuracy,
    difference,
    per_class_accuracy,
    summarize,
    top1_accuracy,
)
from dinv.metrics.report import Score, markdown_table, summary


def easy_images(n=60, side=16, channels=1, seed=0):
    """Three classes told apart by brightness."""
    labels = torch.arange(n) % 3
    noise = torch.from_numpy(tiny.random_images(n, side, channels, seed)).permute(0, 3, 1, 2) // 5
    return LabelledImages((noise + 90 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def fit(sources=None, seed=0, **update):
    sources = sources or [easy_images()]
    statistics = pixel_statistics(sources[0].images)
    return train_classifier(sources, 3, statistics, tiny.train_params(**update), seed)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (96, 3), (256, 3)])
def test_architectures_take_small_images(name, side, channels):
    one = torch.ones(channels)
    classifier = create_classifier(name, channels, 7, FIXED_WIDTHS.get(name, 64), side, one, one).eval()
    images = torch.from_numpy(tiny.random_images(2, side, channels)).permute(0, 3, 1, 2)
    assert classifier(images).shape == (2, 7)


PUBLISHED_SIZES = {  # parameters with ten classes; the first two as in the CIFAR networks
    "resnet18": 11_173_962,
    "vgg16": 14_728_266,
    "mobilenetv2": 2_236_682,
    "shufflenetv2": 352_042,
    "efficientnet_b0": 4_020_358,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED_SIZES))
def test_architectures_are_the_published_ones(name):
    classifier = create_classifier(name, 3, 10, FIXED_WIDTHS[name], 32, torch.zeros(3), torch.ones(3))
    assert sum(p.numel() for p in classifier.parameters()) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"convnet3"}))
def test_every_architecture_is_reproducible_and_survives_a_file(name, tmp_path):
    """EfficientNet drops activations and whole blocks at random: that too follows from the seed."""
    update = {"architecture": name, "width": FIXED_WIDTHS[name], "num_steps": 3, "batch_size": 4}
    first, second = (fit(**update) for _ in range(2))
    for key, value in first.classifier.state_dict().items():
        assert torch.equal(value, second.classifier.state_dict()[key]), key
    save_classifier(first, tiny.train_params(**update), 0, 60, tmp_path / "c.safetensors")
    loaded = load_classifier(tmp_path / "c.safetensors").classifier
    images = easy_images().images[:4]
    assert torch.allclose(loaded(images), first.classifier(images))


@pytest.mark.parametrize(("image_size", "side"), [(32, 32), (64, 64), (96, 48), (256, 64)])
def test_resnet18_stem_follows_the_image_size(image_size, side):
    body = create_classifier("resnet18", 3, 10, 64, image_size, torch.zeros(3), torch.ones(3)).body.eval()
    stem = torch.nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
    assert stem(torch.zeros(1, 3, image_size, image_size)).shape == (1, 64, side, side)


def test_training_learns_an_easy_task_and_reports_a_falling_loss():
    result = fit(num_steps=60)
    test = easy_images(seed=1)
    assert (predict_proba(result.classifier, test.images).argmax(1) == test.labels).float().mean() > 0.95
    assert result.curve[-1][1] < result.curve[0][1] and result.curve[-1][0] == 60


def test_same_seed_same_bits_other_seed_other_weights_and_global_rng_is_untouched():
    state = torch.get_rng_state()
    a, b, c = fit(), fit(), fit(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in r.classifier.parameters()]) for r in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_mixed_batches_hold_the_asked_share():
    assert batch_sizes(tiny.train_params(batch_size=64, real_fraction=0.25), 2) == [16, 48]
    assert batch_sizes(tiny.train_params(batch_size=8, real_fraction=0.01), 2) == [1, 7]
    assert batch_sizes(tiny.train_params(batch_size=8), 1) == [8]


def test_mixed_arm_learns_from_both_sources():
    real, synthetic = easy_images(), easy_images()
    only_last = synthetic.labels == 2
    sources = [
        LabelledImages(real.images[~only_last], real.labels[~only_last]),
        LabelledImages(synthetic.images[only_last], synthetic.labels[only_last]),
    ]
    result = fit(sources, num_steps=60)
    test = easy_images(seed=1)
    assert (predict_proba(result.classifier, test.images).argmax(1) == test.labels).float().mean() > 0.9


def numbered(n, offset, **fields):
    """Images whose pixels are their number."""
    values = (torch.arange(n) + offset).to(torch.uint8).view(-1, 1, 1, 1)
    return LabelledImages(values.expand(-1, 1, 8, 8).contiguous(), torch.arange(n) % 3, **fields)


def batches_of(sources, count, **update):
    stream = make_batches(sources, tiny.train_params(**update), torch.Generator().manual_seed(0))
    return [next(stream) for _ in range(count)]


def test_replacing_puts_an_image_generated_from_it_in_a_real_images_place():
    """Row i of ten has generated images 100 + i and 110 + i; row 9 has none and always stays."""
    origins = torch.tensor([i % 10 for i in range(20) if i % 10 < 9])
    values = torch.tensor([100 + i for i in range(20) if i % 10 < 9], dtype=torch.uint8)
    synthetic = LabelledImages(values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), origins % 3, origins)
    sources = [numbered(10, 0), synthetic]
    batches = batches_of(sources, 300, mixing="replace", real_fraction=0.25, batch_size=10)
    shown = torch.stack([b.images[:, 0, 0, 0] for b in batches]).long()
    labels = torch.stack([b.labels for b in batches])
    assert torch.equal(labels, shown % 10 % 3), "a replacement has its origin's label"
    assert torch.equal((shown % 10).sort(1).values, torch.arange(10).expand(300, -1))
    share = (shown < 100).float()
    assert (share[shown % 10 == 9] == 1).all()
    assert share[shown % 10 != 9].mean() == pytest.approx(0.25, abs=0.03)
    assert set(shown[shown % 10 == 4].tolist()) == {4, 104, 114}
    assert sources[0].images.max() < 10, "the real images themselves stay as they are"


def test_batches_carry_the_weights_of_their_sources():
    (plain,) = batches_of([numbered(6, 0), numbered(6, 100)], 1)
    assert plain.weights is None
    sources = [numbered(6, 0), numbered(6, 100, origins=torch.arange(6), weight=0.25)]
    for mixing in ("batch", "replace"):
        for batch in batches_of(sources, 5, mixing=mixing):
            generated = batch.images[:, 0, 0, 0] >= 100
            assert torch.equal(batch.weights, torch.where(generated, 0.25, 1.0))


def test_weighted_loss_is_that_of_repeated_images():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    weights = torch.tensor([1.0, 2.0, 3.0])
    rows = torch.tensor([0, 1, 1, 2, 2, 2])
    repeated = torch.nn.functional.cross_entropy(logits[rows], labels[rows], label_smoothing=0.1)
    assert weighted_cross_entropy(logits, labels, weights, 0.1) == pytest.approx(repeated.item())
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    assert weighted_cross_entropy(logits, one_hot, weights, 0.1) == pytest.approx(repeated.item())


@pytest.mark.parametrize(("weight", "winner"), [(0.02, 0), (50.0, 1)])
def test_the_loss_weight_decides_between_contradicting_sources(weight, winner):
    images = easy_images(n=30).images
    real = LabelledImages(images, torch.zeros(30, dtype=torch.int64))
    synthetic = LabelledImages(images, torch.ones(30, dtype=torch.int64), torch.arange(30), weight)
    result = fit([real, synthetic], num_steps=60, lr=0.02)
    assert (predict_proba(result.classifier, images).argmax(1) == winner).float().mean() > 0.9


def image_set(labelled):
    n = len(labelled.labels)
    pixels = labelled.images.permute(0, 2, 3, 1).numpy()
    return ImageSet(pixels, labelled.labels.numpy(), [str(i) for i in range(n)], ["a", "b", "c"])


def test_filter_leaves_out_what_the_real_arms_classifiers_doubt():
    teachers = [fit(num_steps=60, seed=seed).classifier for seed in range(2)]
    good, bad = easy_images(seed=3), easy_images(n=9, seed=4)
    mislabelled = LabelledImages(bad.images, (bad.labels + 1) % 3)
    images = torch.cat([good.images, mislabelled.images])
    both = image_set(LabelledImages(images, torch.cat([good.labels, mislabelled.labels])))
    confidence = label_confidence(teachers, both, torch.device("cpu"))
    each = torch.stack([t(images).softmax(1) for t in teachers]).mean(0)
    assert np.allclose(confidence, each[range(69), both.labels].detach(), atol=1e-6)
    kept = keep_confident(both, confidence, 0.5)
    assert len(kept) >= 55 and all(int(i) < 60 for i in kept.ids)
    assert len(keep_confident(both, confidence, 0.0)) == 69


def test_a_filter_that_leaves_a_class_without_images_is_refused():
    images = image_set(easy_images(n=6))
    confidence = np.array([0.9, 0.2, 0.9, 0.9, 0.3, 0.9], np.float32)
    assert len(keep_confident(images, confidence, 0.3)) == 5
    with pytest.raises(UserError, match=r"train\.min_confidence = 0\.4: no generated image of class 'b'"):
        keep_confident(images, confidence, 0.4)


TORCHVISION = {
    "resnet18": torchvision_models.resnet18,
    "vgg16": torchvision_models.vgg16_bn,
    "mobilenetv2": torchvision_models.mobilenet_v2,
    "shufflenetv2": torchvision_models.shufflenet_v2_x0_5,
    "efficientnet_b0": torchvision_models.efficientnet_b0,
}


@pytest.mark.parametrize("name", sorted(set(TORCHVISION) - {"vgg16"}))
def test_torchvisions_weights_are_taken_but_for_stem_and_head(name, tmp_path):
    theirs = TORCHVISION[name](num_classes=5).state_dict()
    save_file(theirs, tmp_path / "weights.safetensors")
    one = torch.ones(3)
    body = create_classifier(name, 3, 7, FIXED_WIDTHS[name], 32, one, one).body
    load_pretrained(body, tmp_path / "weights.safetensors")
    ours = body.state_dict()
    equal = [k for k, v in theirs.items() if v.shape == ours[k].shape and torch.equal(v, ours[k])]
    assert len(equal) >= len(theirs) - 3


def test_vgg16s_weights_are_taken_without_its_three_linear_layers(tmp_path):
    """As torchvision names them; the real linear layers have half a gigabyte."""
    features = torchvision_models.vgg.make_layers(torchvision_models.vgg.cfgs["D"], batch_norm=True)
    theirs = {f"features.{k}": v for k, v in features.state_dict().items()}
    save_file(theirs | {"classifier.6.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    body = create_classifier("vgg16", 3, 7, 64, 32, torch.ones(3), torch.ones(3)).body
    load_pretrained(body, tmp_path / "w.safetensors")
    assert all(torch.equal(v, body.state_dict()[k]) for k, v in theirs.items())


def test_training_starts_from_pretrained_weights(tmp_path):
    start = create_classifier("convnet3", 1, 3, 8, 16, torch.ones(1), torch.ones(1)).body.state_dict()
    start = {k: v.contiguous() for k, v in start.items()}
    save_file(start, tmp_path / "w.safetensors")
    rest = {"num_steps": 1, "warmup_steps": 0, "lr": 1e-9, "pretrained": str(tmp_path / "w.safetensors")}
    trained = fit(**rest).classifier.body.state_dict()
    assert torch.allclose(trained["4.weight"], start["4.weight"], atol=1e-5)
    assert not torch.allclose(
        fit(**{**rest, "pretrained": None}).classifier.body[4].weight, start["4.weight"]
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv9.weight": torch.zeros(1)}, r"is missing, superfluous or of another shape \(\d+ such"),
        (None, "cannot be read"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, tensors, message):
    path = tmp_path / "w.safetensors"
    if tensors is not None:
        save_file(tensors, path)
    with pytest.raises(UserError, match=rf"train\.pretrained = '{path}': .*{message}"):
        fit(pretrained=str(path))


@given(st.integers(1, 9), st.integers(1, 20))
def test_index_stream_shows_every_image_once_per_epoch(n, batch_size):
    stream = index_stream(n, batch_size, torch.Generator().manual_seed(0))
    seen = torch.cat([next(stream) for _ in range(2 * n)])
    epochs = seen[: len(seen) // n * n].view(-1, n)
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in epochs)


def test_learning_rate_warms_up_and_ends_at_a_thousandth():
    params = tiny.train_params(num_steps=1000, warmup_steps=100, lr=0.1)
    rates = [learning_rate(params, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.001) and np.argmax(rates) in range(95, 105)
    assert rates[-1] == pytest.approx(1e-4, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_crop_shifts_whole_images_by_at_most_an_eighth(seed):
    images = torch.randint(1, 256, (3, 2, 16, 16), dtype=torch.uint8)
    out = random_crop(images, torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for image, canvas in zip(out, padded, strict=True):
        windows = [canvas[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, w) for w in windows)


def test_flip_mirrors_about_half():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(1000, 1, 2, 4)
    out = random_horizontal_flip(images, torch.Generator().manual_seed(0))
    flipped = (out == images.flip(3)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) | flipped).all() and 400 < flipped.sum() < 600


def test_mixup_is_one_convex_combination_of_the_batch_and_its_neighbour():
    images, labels = easy_images(n=6).images, torch.arange(6) % 3
    mixed, target = mix(images, labels, 3, mixup_alpha=1.0, cutmix_alpha=0.0)
    one_hot = torch.nn.functional.one_hot(labels, 3).float()
    weight = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0).float())).nanmedian()
    assert torch.allclose(mixed, weight * images + (1 - weight) * images.roll(1, 0), atol=0.01)
    assert torch.allclose(target, weight * one_hot + (1 - weight) * one_hot.roll(1, 0), atol=1e-4)


def test_cutmix_pastes_one_rectangle_and_labels_by_area():
    images, labels = torch.arange(1, 5).view(4, 1, 1, 1).expand(4, 1, 16, 16).to(torch.uint8), torch.arange(4)
    for _ in range(20):
        mixed, target = mix(images, labels, 4, mixup_alpha=0.0, cutmix_alpha=1.0)
        own = (mixed == images).flatten(1).float().mean(1)
        assert torch.equal(mixed == images, (mixed[:1] == images[:1]).expand_as(mixed))
        assert torch.allclose(target[torch.arange(4), labels], own, atol=1e-6)
        assert torch.allclose(target.sum(1), torch.ones(4))


def test_auto_augment_draws_for_each_image_and_keeps_bytes():
    image = torch.from_numpy(tiny.random_images(1, 32)).permute(0, 3, 1, 2)
    out = auto_augment(image.expand(8, -1, -1, -1), "cifar10")
    assert out.shape == (8, 3, 32, 32) and out.dtype == torch.uint8
    assert len({o.numpy().tobytes() for o in out}) > 2


@pytest.mark.parametrize(
    "update",
    [
        {"auto_augment": "svhn"},
        {"mixup_alpha": 0.5},
        {"cutmix_alpha": 1.0},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
    ],
)
def test_each_augmentation_trains_reproducibly_and_is_not_ignored(update):
    torch.seed()
    first = fit(**update)
    torch.seed()
    again, without = fit(**update), fit()
    key = "body.0.weight"
    assert torch.equal(first.classifier.state_dict()[key], again.classifier.state_dict()[key])
    assert not torch.equal(first.classifier.state_dict()[key], without.classifier.state_dict()[key])


def test_stored_classifier_predicts_the_same(tmp_path):
    result, images = fit(), easy_images(seed=2).images
    save_classifier(result, tiny.train_params(), 5, 60, tmp_path / "part-00000.safetensors")
    (stored,) = load_classifiers(tmp_path)
    assert (stored.seed, stored.num_images) == (5, 60) and stored.curve[0][0] == result.curve[0][0]
    assert torch.equal(stored.classifier(images), result.classifier(images))


def test_a_classifier_has_one_metadata_entry_so_that_its_bytes_are_stable(tmp_path):
    save_classifier(fit(), tiny.train_params(), 5, 60, tmp_path / "a")
    with safe_open(tmp_path / "a", "pt") as file:
        assert len(file.metadata()) == 1


def test_damaged_classifier_is_named(tmp_path):
    path = tmp_path / "part-00000.safetensors"
    save_classifier(fit(), tiny.train_params(), 5, 60, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"part-00000\.safetensors: "):
        load_classifier(path)
    with pytest.raises(UserError, match="no classifiers there"):
        load_classifiers(tmp_path / "absent")


def test_accuracies_known_answers():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 0])
    assert top1_accuracy(labels, predicted) == 50.0
    assert balanced_accuracy(labels, predicted) == pytest.approx(100 * (2 / 3 + 0) / 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_balanced_accuracy_equals_scikit_learns(pairs):
    labels, predicted = np.array(pairs).T
    present = predicted[np.isin(predicted, labels)]
    if len(present) == len(predicted):
        expected = 100 * balanced_accuracy_score(labels, predicted)
        assert balanced_accuracy(labels, predicted) == pytest.approx(expected)


def test_per_class_accuracy_known_answer():
    labels, predicted = np.array([0, 0, 0, 0, 2]), np.array([0, 0, 0, 1, 1])
    assert per_class_accuracy(labels, predicted) == {0: 75.0, 2: 0.0}


def test_summary_known_answer():
    s = summarize([1.0, 2.0, 3.0])
    assert (s.mean, s.std, s.n) == (2.0, 1.0, 3) and s.stderr == pytest.approx(1 / math.sqrt(3))
    assert summarize([4.0]).std is None


def test_difference_is_paired_and_signed():
    d = difference([11.0, 12.0, 13.0], [1.0, 2.0, 3.0])
    assert (d.mean, d.std) == (10.0, 0.0)


def test_report_keeps_arms_and_splits_apart():
    scores = [
        Score(arm, seed, split, value + seed + (100 if split == "val" else 0), 0.0, 3.0 + seed)
        for arm, value in (("real", 10.0), ("synthetic", 20.0))
        for seed in (1, 0)
        for split in ("test", "val")
    ]
    out = summary(scores, ["real", "synthetic"])
    assert out["top1_accuracy"] == {"real": 10.5, "synthetic": 20.5}
    assert out["val_top1_accuracy"]["real"] == 110.5
    assert out["expected_calibration_error"] == {"real": 3.5, "synthetic": 3.5}
    assert out["gain_over_real"]["synthetic"] == {"mean": 10.0, "std": 0.0, "stderr": 0.0, "n": 2}
    table = markdown_table(scores, ["real", "synthetic"], {"real": 5, "synthetic": 50})
    assert "| synthetic | 50 | 20.50 ± 0.71 (2) | +10.00 ± 0.00 |" in table
