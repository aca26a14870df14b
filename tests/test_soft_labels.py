"""A teacher of generated images: which are kept, and their soft labels; by default nobody is asked."""

import copy

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_classify import easy_images, labels_of
from test_config import RAW
from test_probe import SHIPPED
from test_probe import fit as fit_probe

from dinv.classify.arms import Arm
from dinv.classify.cnn import CnnParams
from dinv.classify.confidence import class_confidence, quantile_rows, soft_targets
from dinv.classify.feature_params import TeacherParams
from dinv.classify.generated import class_probabilities, prepared
from dinv.classify.run import Trainer, content_digest
from dinv.classify.store import load_classifiers
from dinv.classify.teacher import find_teachers, fit_teacher
from dinv.errors import UserError
from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.params import parse_params

CPU = torch.device("cpu")
TEACHER = {"features": SHIPPED, "C": 1.0}


@given(st.floats(0, 1), st.floats(0.25, 8), st.integers(0, 99))
def test_soft_targets_are_the_label_and_the_teachers_softmax_at_a_temperature(weight, temperature, seed):
    rng = np.random.default_rng(seed)
    logits, labels = torch.from_numpy(rng.normal(size=(5, 4)) * 3), rng.integers(0, 4, 5)
    hard = np.eye(4, dtype=np.float32)[labels]
    found = soft_targets(hard, logits.softmax(1).float().numpy(), weight, temperature)
    expected = (1 - weight) * hard + weight * (logits / temperature).softmax(1).numpy()
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-5)


def test_soft_targets_known_answers():
    """p = (0.8, 0.2): its roots are as 2 to 1, its squares as 16 to 1."""
    hard, p = np.array([[0.0, 1.0]], np.float32), np.array([[0.8, 0.2]], np.float32)
    assert np.allclose(soft_targets(hard, p, 1.0, 1.0), p)
    assert np.allclose(soft_targets(hard, p, 1.0, 2.0), [[2 / 3, 1 / 3]])
    assert np.allclose(soft_targets(hard, p, 1.0, 0.5), [[16 / 17, 1 / 17]])
    assert np.allclose(soft_targets(hard, p, 0.25, 1.0), [[0.2, 0.8]])
    assert np.array_equal(soft_targets(hard, np.array([[1.0, 0.0]], np.float32), 0.0, 1.0), hard)
    assert np.allclose(soft_targets(hard, np.array([[1.0, 0.0]], np.float32), 1.0, 2.0), [[1, 0]], atol=1e-6)


def test_quantiles_are_those_of_each_class():
    confidence = np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.02, 0.04, 0.03, 0.01], np.float32)
    labels = np.array([0] * 5 + [1] * 4)
    assert quantile_rows(confidence, labels, 0.0, 1.0).tolist() == list(range(9))
    assert quantile_rows(confidence, labels, 0.2, 0.8).tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert quantile_rows(confidence, labels, 0.5, 1.0).tolist() == [0, 2, 3, 6, 7]
    assert quantile_rows(confidence, labels, 0.0, 0.01).tolist() == [1, 8], "one of each is left at least"


@given(st.integers(1, 40), st.floats(0, 0.95), st.floats(0.01, 1))
def test_every_class_keeps_its_share_and_no_class_is_lost(n, low, width):
    high = min(1.0, low + width)
    confidence = np.random.default_rng(n).permutation(3 * n).astype(np.float32)
    labels = np.arange(3 * n) % 3
    kept = quantile_rows(confidence, labels, low, high)
    counts = np.bincount(labels[kept], minlength=3)
    assert (counts == counts[0]).all() and counts[0] >= 1
    assert counts[0] == pytest.approx((high - low) * n, abs=2.01)
    for k in range(3):
        own, chosen = np.sort(confidence[labels == k]), np.sort(confidence[kept][labels[kept] == k])
        start = int(np.flatnonzero(own == chosen[0])[0])
        assert np.array_equal(own[start : start + len(chosen)], chosen), "a run of ranks"


class Knows:
    """Gives every image of pixel v the probability v / 100 of class 0."""

    def predict_proba(self, images, device):
        p = images[:, 0, 0, 0].numpy().astype(np.float32) / 100
        return np.stack([p, 1 - p], 1)


def save(folder, values, labels, names=("a", "b"), **more):
    images = np.asarray(values, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    ids = [f"{folder.name}-{i}" for i in range(len(values))]
    save_image_set(ImageSet(images, np.asarray(labels), ids, list(names), **more), folder)
    return ImageSetReader(folder)


@pytest.fixture
def made(tmp_path):
    return save(tmp_path / "made", [90, 60, 10, 80, 70, 5], [0, 0, 0, 1, 1, 1])


def asked(made, **update):
    return prepared(made, range(len(made)), tiny.train_params(**update), lambda: [Knows()], CPU)


def test_by_default_nobody_is_asked_and_images_are_as_stored(made):
    def nobody():
        raise AssertionError

    found = prepared(made, range(6), tiny.train_params(), nobody, CPU)
    assert content_digest(found) == content_digest(made.mapped()) and found.probabilities is None
    explicit = {"soft_labels": "none", "teacher": TeacherParams(**TEACHER), "teacher_temperature": 3.0}
    assert not tiny.train_params(**explicit).asks_a_teacher


def test_filters_and_soft_labels_together(made):
    """Confidence of the labels: 0.9, 0.6, 0.1 and 0.2, 0.3, 0.95."""
    assert asked(made, min_confidence=0.25).pixels[:, 0, 0, 0].tolist() == [90, 60, 70, 5]
    assert asked(made, max_confidence_quantile=0.5).pixels[:, 0, 0, 0].tolist() == [60, 10, 80, 70]
    both = asked(made, min_confidence=0.15, max_confidence_quantile=0.5, soft_labels="teacher")
    assert both.pixels[:, 0, 0, 0].tolist() == [60, 80, 70], "quantiles of what min_confidence keeps"
    expected = [[0.8, 0.2], [0.4, 0.6], [0.35, 0.65]]
    assert np.allclose(class_probabilities(both), expected) and both.labels.tolist() == [0, 1, 1]
    assert both.ids == ["made-1", "made-3", "made-4"]


def test_soft_labels_that_a_strategy_gave_are_mixed_with_the_teachers(tmp_path):
    stored = np.array([[0.6, 0.4], [0.3, 0.7]], np.float32)
    made = save(tmp_path / "soft", [100, 50], [0, 1], probabilities=stored)
    found = asked(made, soft_labels="teacher", teacher_weight=0.5)
    assert np.allclose(found.probabilities, [[0.8, 0.2], [0.4, 0.6]])


def test_a_teacher_is_a_logistic_probe_of_the_real_images(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    monkeypatch.chdir(tiny.ROOT)
    real, new = easy_images(n=30), easy_images(seed=1)
    teacher = fit_teacher(real, TeacherParams(**TEACHER), CPU)
    expected = fit_probe(real, classifier="logistic", kernel="linear", C=1.0)
    assert np.allclose(teacher.predict_proba(new.images, CPU), expected.predict_proba(new.images, CPU))
    assert (teacher.predict_proba(new.images, CPU).argmax(1) == labels_of(new).numpy()).mean() > 0.9


def test_a_teacher_and_own_classifiers_together(tmp_path, monkeypatch):
    """p = s p_teacher + (1 - s) mean of the others, who are asked only if they have a part in it."""
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    monkeypatch.chdir(tiny.ROOT)
    real, images = easy_images(n=30), easy_images(seed=1).images
    own = [fit_probe(real, classifier="svc", C=c) for c in (0.01, 10.0)]

    def says(train_own=lambda: own, **update):
        params = tiny.train_params(**update)
        return class_confidence(find_teachers(params, real, train_own, CPU), images, CPU)

    def nobody():
        raise AssertionError

    taught = TeacherParams(**TEACHER)
    teacher, others = says(nobody, teacher=taught), says()
    assert np.allclose(others, (own[0].predict_proba(images, CPU) + own[1].predict_proba(images, CPU)) / 2)
    both = says(teacher=taught, teacher_share=0.3)
    assert np.allclose(both, 0.3 * teacher + 0.7 * others, atol=1e-6) and both.dtype == np.float32
    assert np.abs(teacher - others).max() > 0.05
    with pytest.raises(ValueError, match=r"teacher_share = 0\.3 needs a teacher; name one, or remove it"):
        CnnParams.model_validate(tiny.train_params(teacher_share=0.3).model_dump())


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A project's data: 12 real images of three classes, and 24 generated ones of which half show another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/fashion-features").symlink_to(tiny.ROOT / "models/fashion-features")
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    names = ("a", "b", "c")
    values = [20 + 90 * (i % 3) + i for i in range(12)]
    save(tmp_path / "data/real/train", values, [i % 3 for i in range(12)], names)
    shown = [(i + (i >= 12)) % 3 for i in range(24)]
    sources = {"source_id": [f"train-{i % 12}" for i in range(24)]}
    save(
        tmp_path / "data/generated/inversion",
        [25 + 90 * k for k in shown],
        [i % 3 for i in range(24)],
        names,
        provenance=sources,
    )
    return Arm(images="data/generated/inversion", real=True, learner="cnn")


def trained(arm, output, **update):
    params = tiny.train_params(seeds=[0], random_crop=False, **update)
    trainer = Trainer(params, tiny.PARAMS.execution, CPU, "code")
    trainer.train("mixed", arm, output)
    (classifier,) = load_classifiers(output)
    return classifier


def test_an_arm_learns_the_teachers_labels_and_resumes(task, tmp_path, capfd):
    update = {"soft_labels": "teacher", "teacher_weight": 1.0, "teacher": TeacherParams(**TEACHER)}
    hard, soft = trained(task, tmp_path / "hard"), trained(task, tmp_path / "soft", **update)
    key = "body.0.weight"
    assert not torch.equal(hard.fitted.tensors[key], soft.fitted.tensors[key])
    nothing = trained(task, tmp_path / "nothing", **{**update, "teacher_weight": 0.0})
    assert torch.equal(nothing.fitted.tensors[key], hard.fitted.tensors[key])
    first = (tmp_path / "soft/part-00000.safetensors").read_bytes()
    capfd.readouterr()
    trained(task, tmp_path / "soft", **update)
    assert "1 of 1 parts are already finished" in "".join(capfd.readouterr())
    assert (tmp_path / "soft/part-00000.safetensors").read_bytes() == first


def test_without_a_teacher_it_is_the_real_arms_own_classifiers(task, tmp_path, capsys):
    real = trained(Arm(images="data/real/train", real=False, learner="cnn"), tmp_path / "real", num_steps=60)
    kept = trained(task, tmp_path / "kept", num_steps=60, min_confidence_quantile=0.5)
    assert "12 of 24 generated images are kept" in capsys.readouterr().out and kept.num_images == 24
    images = ImageSetReader(tmp_path / "data/generated/inversion").mapped()
    confidence = real.predict_proba(images.tensor(), CPU)[range(24), images.labels]
    rows = quantile_rows(confidence, images.labels, 0.5, 1.0)
    assert (rows < 12).mean() > 0.9, "those that show what they are labelled as"


def test_in_a_second_round_classifiers_of_the_first_say_what_images_show(task, tmp_path):
    """The same as to train, to label generated images by what was trained, and to train on those labels."""
    asked = {"soft_labels": "teacher", "teacher": TeacherParams(**TEACHER), "teacher_weight": 0.7}
    first = trained(task, tmp_path / "first", **asked)
    second = trained(task, tmp_path / "second", **asked, teacher_rounds=2)
    third = trained(task, tmp_path / "third", **asked, teacher_rounds=3)
    made = ImageSetReader(tmp_path / "data/generated/inversion").mapped()
    classifier = first
    for found in (second, third):
        says = classifier.predict_proba(made.tensor(), CPU)
        save(
            tmp_path / "data/generated/labelled",
            made.pixels[:, 0, 0, 0].tolist(),
            made.labels.tolist(),
            made.class_names,
            probabilities=soft_targets(class_probabilities(made), says, 0.7, 1.0),
            provenance=made.provenance,
        )
        arm = Arm(images="data/generated/labelled", real=True, learner="cnn")
        classifier = trained(arm, tmp_path / "by_hand")
        images = made.tensor()
        assert np.allclose(found.predict_proba(images, CPU), classifier.predict_proba(images, CPU), atol=1e-6)
        assert not np.allclose(found.predict_proba(images, CPU), first.predict_proba(images, CPU), atol=1e-3)


BAD = [
    ({"min_confidence_quantile": 1.0}, r"\.min_confidence_quantile = 1\.0: .*less than 1"),
    ({"max_confidence_quantile": 0.0}, r"\.max_confidence_quantile = 0\.0: .*greater than 0"),
    (
        {"min_confidence_quantile": 0.5, "max_confidence_quantile": 0.5},
        r": min_confidence_quantile must be below max_confidence_quantile \(0\.5\)",
    ),
    ({"teacher_rounds": 0}, r"\.teacher_rounds = 0: .*greater than 0"),
    ({"teacher_rounds": 2}, r": teacher_rounds = 2 label again .*set soft_labels to teacher, or remove it"),
    ({"soft_labels": "own"}, r"\.soft_labels = 'own': .*'teacher'"),
    ({"teacher_weight": 1.1}, r"\.teacher_weight = 1\.1: "),
    ({"teacher_temperature": 0.0}, r"\.teacher_temperature = 0\.0: .*greater than 0"),
    ({"teacher": {"features": SHIPPED}}, r"\.teacher\.C: missing parameter"),
    ({"teacher": {**TEACHER, "kernel": "rbf"}}, r"\.teacher\.kernel: unknown parameter"),
    ({"teacher": {"features": {"network": "vgg", "path": "x"}, "C": 1.0}}, r"\.teacher\.features"),
]


@pytest.mark.parametrize(("update", "message"), BAD)
def test_bad_values(update, message):
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"] |= update
    with pytest.raises(UserError, match=r"^params\.yaml: train\.cnn" + message) as error:
        parse_params(raw)
    assert "\n" not in str(error.value)


def test_a_teacher_without_its_network_is_named(task, tmp_path):
    absent = {"network": "convnet", "path": "models/pretrained/absent"}
    with pytest.raises(UserError, match=r"models/pretrained/absent"):
        trained(task, tmp_path / "x", soft_labels="teacher", teacher=TeacherParams(features=absent, C=1.0))
