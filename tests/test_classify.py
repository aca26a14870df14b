"""Classifiers, augmentation, the training loop and the metrics."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision import models as torchvision_models

from dinv.classify.architectures import ARCHITECTURES, create_classifier, load_pretrained
from dinv.classify.arms import Arm, baseline_of
from dinv.classify.augment import augment, mix, random_crop, random_flip, random_quarter_turns
from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.batches import batch_sizes, index_stream, make_batches
from dinv.classify.cnn import Cnn
from dinv.classify.confidence import class_confidence, confident_rows, label_confidence
from dinv.classify.store import StoredClassifier, load_classifier, save_classifier
from dinv.classify.training import learning_rate, smoothed, weighted_cross_entropy
from dinv.errors import UserError

CPU = torch.device("cpu")


def one_hot(labels, num_classes=3):
    return torch.nn.functional.one_hot(labels, num_classes).float()


def easy_images(n=60, side=16, channels=1, seed=0):
    """Three classes told apart by brightness."""
    labels = torch.arange(n) % 3
    noise = torch.from_numpy(tiny.random_images(n, side, channels, seed)).permute(0, 3, 1, 2) // 5
    return LabelledImages((noise + 90 * labels.view(-1, 1, 1, 1)).to(torch.uint8), one_hot(labels))


def labels_of(images):
    return images.targets.argmax(1)


def fit(sources=None, seed=0, **update):
    sources = sources or [easy_images()]
    params = tiny.train_params(**update)
    fitted = Cnn.fit(TrainingSet(sources, sources[0]), params, seed, CPU, lambda n: None)
    return StoredClassifier("cnn", fitted, seed, sum(map(len, sources)))


def weights(classifier):
    return classifier.fitted.tensors


def accuracy(classifier, images, labels):
    return (classifier.predict_proba(images, CPU).argmax(1) == labels.numpy()).mean()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (96, 3), (256, 3)])
def test_architectures_take_small_images(name, side, channels):
    one = torch.ones(channels)
    classifier = create_classifier(name, channels, 7, side, one, one).eval()
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
    classifier = create_classifier(name, 3, 10, 32, torch.zeros(3), torch.ones(3))
    assert sum(p.numel() for p in classifier.parameters()) == PUBLISHED_SIZES[name]


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"convnet3"}))
def test_every_architecture_is_reproducible_and_survives_a_file(name, tmp_path):
    """EfficientNet drops activations and whole blocks at random: that too follows from the seed."""
    update = {"architecture": name, "num_steps": 3, "batch_size": 4}
    first, second = (fit(**update) for _ in range(2))
    for key, value in weights(first).items():
        assert torch.equal(value, weights(second)[key]), key
    save_classifier(first, tmp_path / "c.safetensors")
    loaded, images = load_classifier(tmp_path / "c.safetensors"), easy_images().images[:4]
    assert np.allclose(loaded.predict_proba(images, CPU), first.predict_proba(images, CPU))


@pytest.mark.parametrize(("image_size", "side"), [(32, 32), (64, 64), (96, 48), (256, 64)])
def test_resnet18_stem_follows_the_image_size(image_size, side):
    body = create_classifier("resnet18", 3, 10, image_size, torch.zeros(3), torch.ones(3)).body.eval()
    stem = torch.nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
    assert stem(torch.zeros(1, 3, image_size, image_size)).shape == (1, 64, side, side)


def test_training_learns_an_easy_task_and_reports_a_falling_loss():
    result = fit(num_steps=60)
    test = easy_images(seed=1)
    assert accuracy(result, test.images, labels_of(test)) > 0.95
    assert result.curve[-1][1] < result.curve[0][1] and result.curve[-1][0] == 60


def test_same_seed_same_bits_other_seed_other_weights_and_global_rng_is_untouched():
    state = torch.get_rng_state()
    a, b, c = fit(), fit(), fit(seed=1)
    assert torch.equal(state, torch.get_rng_state())
    first = [weights(r)["body.0.weight"] for r in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_mixed_batches_hold_the_asked_share():
    assert batch_sizes(tiny.train_params(batch_size=64, real_fraction=0.25), 2) == [16, 48]
    assert batch_sizes(tiny.train_params(batch_size=8, real_fraction=0.01), 2) == [1, 7]
    assert batch_sizes(tiny.train_params(batch_size=8), 1) == [8]


def test_mixed_arm_learns_from_both_sources():
    real, synthetic = easy_images(), easy_images()
    only_last = labels_of(synthetic) == 2
    sources = [
        LabelledImages(real.images[~only_last], real.targets[~only_last]),
        LabelledImages(synthetic.images[only_last], synthetic.targets[only_last]),
    ]
    result = fit(sources, num_steps=60)
    test = easy_images(seed=1)
    assert accuracy(result, test.images, labels_of(test)) > 0.9


def numbered(n, offset, **fields):
    """Images whose pixels are their number."""
    values = (torch.arange(n) + offset).to(torch.uint8).view(-1, 1, 1, 1)
    return LabelledImages(values.expand(-1, 1, 8, 8).contiguous(), one_hot(torch.arange(n) % 3), **fields)


def batches_of(sources, count, **update):
    stream = make_batches(sources, tiny.train_params(**update), torch.Generator().manual_seed(0))
    return [next(stream) for _ in range(count)]


def test_replacing_puts_an_image_generated_from_it_in_a_real_images_place():
    """Row i of ten has generated images 100 + i and 110 + i; row 9 has none and always stays."""
    origins = torch.tensor([i % 10 for i in range(20) if i % 10 < 9])
    values = torch.tensor([100 + i for i in range(20) if i % 10 < 9], dtype=torch.uint8)
    synthetic = LabelledImages(values.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), one_hot(origins % 3), origins)
    sources = [numbered(10, 0), synthetic]
    batches = batches_of(sources, 300, mixing="replace", real_fraction=0.25, batch_size=10)
    shown = torch.stack([b.images[:, 0, 0, 0] for b in batches]).long()
    labels = torch.stack([b.targets.argmax(1) for b in batches])
    assert torch.equal(labels, shown % 10 % 3), "a replacement has its origin's label"
    assert torch.equal((shown % 10).sort(1).values, torch.arange(10).expand(300, -1))
    share = (shown < 100).float()
    assert (share[shown % 10 == 9] == 1).all()
    assert share[shown % 10 != 9].mean() == pytest.approx(0.25, abs=0.03)
    assert set(shown[shown % 10 == 4].tolist()) == {4, 104, 114}
    assert sources[0].images.max() < 10, "the real images themselves stay as they are"


def test_batches_carry_the_weights_of_their_sources():
    (plain,) = batches_of([numbered(6, 0), numbered(6, 100)], 1)
    assert torch.equal(plain.targets.sum(1), torch.ones(8))
    sources = [numbered(6, 0), numbered(6, 100, origins=torch.arange(6))]
    for mixing in ("batch", "replace"):
        for batch in batches_of(sources, 5, mixing=mixing, synthetic_loss_weight=0.25):
            generated = batch.images[:, 0, 0, 0] >= 100
            assert torch.equal(batch.targets.sum(1), torch.where(generated, 0.25, 1.0))


def test_mixed_batches_are_shuffled_so_that_mixup_crosses_sources():
    """MixUp pairs neighbours; of 64 images in two blocks only two pairs would cross."""
    sources = [numbered(100, 0), numbered(100, 100, origins=torch.arange(100))]
    crossing = []
    for batch in batches_of(sources, 50, batch_size=64, real_fraction=0.5):
        generated = batch.images[:, 0, 0, 0] >= 100
        assert generated.sum() == 32
        crossing.append((generated != generated.roll(1)).float().mean().item())
    assert abs(np.mean(crossing) - 32 / 63) < 0.05


def test_mixing_mixes_loss_weights_with_the_labels():
    images = torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.25]])
    mixed, weighted = mix(images, targets, mixup_alpha=1.0, cutmix_alpha=0.0)
    share = mixed[:, 0, 0, 0] / 200  # of the second image
    expected = torch.stack([1 - share, 0.25 * share], 1)
    torch.testing.assert_close(weighted, expected)


def test_weighted_loss_is_that_of_repeated_images():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    targets = torch.tensor([1.0, 2.0, 3.0])[:, None] * one_hot(labels, 4)
    rows = torch.tensor([0, 1, 1, 2, 2, 2])
    repeated = torch.nn.functional.cross_entropy(logits[rows], labels[rows], label_smoothing=0.1)
    assert weighted_cross_entropy(logits, smoothed(targets, 0.1)).item() == pytest.approx(repeated.item())


def test_loss_of_class_probabilities_is_pytorchs():
    logits, probabilities = torch.randn(5, 4), torch.rand(5, 4).softmax(1)
    expected = torch.nn.functional.cross_entropy(logits, probabilities)
    assert weighted_cross_entropy(logits, probabilities).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(("weight", "winner"), [(0.02, 0), (50.0, 1)])
def test_the_loss_weight_decides_between_contradicting_sources(weight, winner):
    images = easy_images(n=30).images
    real = LabelledImages(images, one_hot(torch.zeros(30).long()))
    synthetic = LabelledImages(images, one_hot(torch.ones(30).long()), torch.arange(30))
    result = fit([real, synthetic], num_steps=60, lr=0.02, synthetic_loss_weight=weight)
    assert accuracy(result, images, torch.full((30,), winner)) > 0.9


def test_filter_leaves_out_what_the_real_arms_classifiers_doubt():
    teachers = [fit(num_steps=60, seed=seed) for seed in range(2)]
    good, bad = easy_images(seed=3), easy_images(n=9, seed=4)
    images = torch.cat([good.images, bad.images])
    labels = torch.cat([labels_of(good), (labels_of(bad) + 1) % 3]).numpy()
    confidence = label_confidence(class_confidence(teachers, images, CPU), labels)
    each = np.mean([t.predict_proba(images, CPU) for t in teachers], axis=0)
    assert np.allclose(confidence, each[range(69), labels], atol=1e-6)
    kept = confident_rows(confidence, labels, ["a", "b", "c"], 0.5)
    assert len(kept) >= 55 and max(kept) < 60
    assert len(confident_rows(confidence, labels, ["a", "b", "c"], 0.0)) == 69


def test_a_filter_that_leaves_a_class_without_images_is_refused():
    labels, names = np.array([0, 1, 2, 0, 1, 2]), ["a", "b", "c"]
    confidence = np.array([0.9, 0.2, 0.9, 0.9, 0.3, 0.9], np.float32)
    assert len(confident_rows(confidence, labels, names, 0.3)) == 5
    with pytest.raises(UserError, match=r"min_confidence = 0\.4: no generated image of class 'b'"):
        confident_rows(confidence, labels, names, 0.4)


def test_the_type_that_the_device_computes_in_is_part_of_what_decides_the_result(monkeypatch):
    params = tiny.train_params(dtype="bfloat16")
    found = []
    for able in (True, False):
        monkeypatch.setattr("dinv.classify.training.computes_bfloat16", lambda device, able=able: able)
        found.append(Cnn.settings(params, False, CPU))
    assert found[0] != found[1]
    assert found[1] == Cnn.settings(tiny.train_params(dtype="float32"), False, CPU)


def test_settings_of_mixing_decide_nothing_where_nothing_is_mixed():
    plain, other = (Cnn.settings(tiny.train_params(real_fraction=f), False, CPU) for f in (0.5, 0.25))
    assert plain == other
    assert Cnn.settings(tiny.train_params(), True, CPU) != Cnn.settings(
        tiny.train_params(real_fraction=0.25), True, CPU
    )


def test_baseline_is_the_same_learner_on_real_images_only():
    arms = {
        "plain": Arm(images="data/real/train", real=False, learner="cnn"),
        "made": Arm(images="data/generated/a", real=False, learner="cnn"),
        "both": Arm(images="data/generated/a", real=True, learner="cnn"),
        "probe": Arm(images="data/generated/a", real=False, learner="svm"),
    }
    found = {name: baseline_of(name, arms) for name in arms}
    assert found == {"plain": None, "made": "plain", "both": "plain", "probe": None}


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
    body = create_classifier(name, 3, 7, 32, one, one).body
    load_pretrained(body, tmp_path / "weights.safetensors")
    ours = body.state_dict()
    equal = [k for k, v in theirs.items() if v.shape == ours[k].shape and torch.equal(v, ours[k])]
    assert len(equal) >= len(theirs) - 3


def test_vgg16s_weights_are_taken_without_its_three_linear_layers(tmp_path):
    """As torchvision names them; the real linear layers have half a gigabyte."""
    features = torchvision_models.vgg.make_layers(torchvision_models.vgg.cfgs["D"], batch_norm=True)
    theirs = {f"features.{k}": v for k, v in features.state_dict().items()}
    save_file(theirs | {"classifier.6.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    body = create_classifier("vgg16", 3, 7, 32, torch.ones(3), torch.ones(3)).body
    load_pretrained(body, tmp_path / "w.safetensors")
    assert all(torch.equal(v, body.state_dict()[k]) for k, v in theirs.items())


@pytest.fixture
def in_project(tmp_path, monkeypatch):
    """A folder with an empty models/pretrained."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models/pretrained"
    folder.mkdir(parents=True)
    return folder


def test_training_starts_from_pretrained_weights(in_project):
    start = create_classifier("convnet3", 1, 3, 16, torch.ones(1), torch.ones(1)).body.state_dict()
    start = {k: v.contiguous() for k, v in start.items()}
    save_file(start, in_project / "w.safetensors")
    rest = {"num_steps": 1, "warmup_steps": 0, "lr": 1e-9, "pretrained": "w.safetensors"}
    trained, scratch = weights(fit(**rest)), weights(fit(**{**rest, "pretrained": None}))
    assert torch.allclose(trained["body.4.weight"], start["4.weight"], atol=1e-5)
    assert not torch.allclose(scratch["body.4.weight"], start["4.weight"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv9.weight": torch.zeros(1)}, r"is missing, superfluous or of another shape \(\d+ such"),
        (None, r"no such file in models/pretrained"),
        ("junk", "cannot be read"),
    ],
)
def test_weights_of_another_network_are_refused(in_project, tensors, message):
    if tensors == "junk":
        (in_project / "w.safetensors").write_bytes(b"junk")
    elif tensors is not None:
        save_file(tensors, in_project / "w.safetensors")
    with pytest.raises(UserError, match=rf"pretrained = 'w\.safetensors': .*{message}"):
        fit(pretrained="w.safetensors")


def test_other_bytes_of_the_pretrained_file_are_other_settings(in_project):
    found = []
    for value in (0.0, 1.0):
        save_file({"w": torch.full((1,), value)}, in_project / "w.safetensors")
        found.append(Cnn.settings(tiny.train_params(pretrained="w.safetensors"), False, CPU))
    assert found[0] != found[1]


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


@pytest.mark.parametrize("dim", [2, 3])
def test_flip_mirrors_about_half(dim):
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(1000, 1, 4, 4)
    out = random_flip(images, torch.Generator().manual_seed(0), dim)
    flipped = (out == images.flip(dim)).flatten(1).all(1)
    assert ((out == images).flatten(1).all(1) | flipped).all() and 400 < flipped.sum() < 600


def test_quarter_turns_are_the_four_and_equally_frequent():
    images = torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4).expand(1000, 2, 4, 4)
    out = random_quarter_turns(images, torch.Generator().manual_seed(0))
    counts = [(out == images[:1].rot90(k, (2, 3))).flatten(1).all(1).sum() for k in range(4)]
    assert sum(counts) == 1000 and all(200 < n < 300 for n in counts)


def test_mixup_is_one_convex_combination_of_the_batch_and_its_neighbour():
    images, sure = easy_images(n=6).images, one_hot(torch.arange(6) % 3)
    mixed, target = mix(images, sure, mixup_alpha=1.0, cutmix_alpha=0.0)
    weight = ((mixed - images.roll(1, 0)) / (images - images.roll(1, 0).float())).nanmedian()
    assert torch.allclose(mixed, weight * images + (1 - weight) * images.roll(1, 0), atol=0.01)
    assert torch.allclose(target, weight * sure + (1 - weight) * sure.roll(1, 0), atol=1e-4)


def test_cutmix_pastes_one_rectangle_and_labels_by_area():
    images, labels = torch.arange(1, 5).view(4, 1, 1, 1).expand(4, 1, 16, 16).to(torch.uint8), torch.arange(4)
    for _ in range(20):
        mixed, target = mix(images, one_hot(labels, 4), mixup_alpha=0.0, cutmix_alpha=1.0)
        own = (mixed == images).flatten(1).float().mean(1)
        assert torch.equal(mixed == images, (mixed[:1] == images[:1]).expand_as(mixed))
        assert torch.allclose(target[torch.arange(4), labels], own, atol=1e-6)
        assert torch.allclose(target.sum(1), torch.ones(4))


PER_IMAGE = {
    "auto_augment": "cifar10",
    "rand_augment_ops": 2,
    "trivial_augment": True,
    "random_erasing": 0.9,
}
OFF = {"random_crop": False, "horizontal_flip": False}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", [*((name,) for name in PER_IMAGE), tuple(PER_IMAGE)])
def test_what_changes_single_images_draws_for_each_and_keeps_bytes(names, channels):
    torch.manual_seed(0)  # by chance one draw in many leaves nearly all eight alike
    image = torch.from_numpy(tiny.random_images(1, 32, channels)).permute(0, 3, 1, 2)
    params = tiny.train_params(**OFF, **{name: PER_IMAGE[name] for name in names})
    targets = one_hot(torch.arange(8) % 3)
    out, same = augment(image.expand(8, -1, -1, -1), targets, params, torch.Generator())
    assert out.shape == (8, channels, 32, 32) and out.dtype == torch.uint8 and torch.equal(same, targets)
    assert len({o.numpy().tobytes() for o in out}) > 2


def test_nothing_on_changes_nothing_and_erasing_blackens_a_rectangle():
    images, targets = easy_images().images | 1, easy_images().targets
    out, _ = augment(images, targets, tiny.train_params(**OFF), torch.Generator())
    assert torch.equal(out, images)
    out, _ = augment(images, targets, tiny.train_params(**OFF, random_erasing=1.0), torch.Generator())
    for image, erased in zip(images, out, strict=True):
        black = erased[0] == 0
        rows, columns = black.any(1), black.any(0)
        assert black.any() and torch.equal(black, rows[:, None] & columns[None])
        assert torch.equal(erased[:, ~black], image[:, ~black])


@pytest.mark.parametrize(
    "update",
    [
        {"auto_augment": "svhn"},
        {"rand_augment_ops": 2},
        {"rand_augment_ops": 2, "rand_augment_magnitude": 3},
        {"trivial_augment": True},
        {"random_erasing": 0.5},
        {"vertical_flip": True},
        {"quarter_turns": True},
        {"mixup_alpha": 0.5},
        {"cutmix_alpha": 1.0},
        {"mixup_alpha": 1.0, "cutmix_alpha": 1.0},
        {**PER_IMAGE, "mixup_alpha": 1.0, "cutmix_alpha": 1.0},
    ],
)
def test_each_augmentation_trains_reproducibly_and_is_not_ignored(update):
    torch.seed()
    first = fit(**update)
    torch.seed()
    again, without = fit(**update), fit()
    key = "body.0.weight"
    assert torch.equal(weights(first)[key], weights(again)[key])
    assert not torch.equal(weights(first)[key], weights(without)[key])
