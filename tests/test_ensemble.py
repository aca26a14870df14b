"""The learner `ensemble`: each member as it would be alone, the mean of what they say."""

import copy

import numpy as np
import pytest
import test_soft_labels
import tiny
import torch
from test_classify import easy_images
from test_config import RAW
from test_probe import SHIPPED

from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.ensemble import Ensemble
from dinv.classify.feature_params import TeacherParams
from dinv.classify.registry import LEARNERS
from dinv.classify.run import Trainer
from dinv.classify.store import StoredClassifier, load_classifier, load_classifiers, save_classifier
from dinv.errors import UserError
from dinv.images.image_set import ImageSetReader
from dinv.params import parse_params

CPU = torch.device("cpu")
task = test_soft_labels.task  # a fixture: a project with 12 real and 24 generated images
PROBE = {
    "learner": "probe",
    "classifier": "logistic",
    "kernel": "linear",
    "C": 0.001,
    "features": SHIPPED,
    "real_fraction": 1.0,
    "synthetic_loss_weight": 1.0,
}
COMMON = ("seeds", "min_confidence")
CNN = {name: value for name, value in RAW["train"]["cnn"].items() if name not in COMMON} | {
    "num_steps": 12,
    "batch_size": 8,
    "warmup_steps": 2,
}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tiny.ROOT)


def parsed(*members, **more):
    raw = copy.deepcopy(RAW)
    block = {"learner": "ensemble", "members": list(members), "seeds": [0, 1], "min_confidence": 0.0, **more}
    raw["train"]["both"] = block
    raw["arms"]["both"] = {"images": "data/real/train", "real": False, "learner": "both"}
    return parse_params(raw).train["both"]


def train(params, arm, output):
    Trainer(params, tiny.PARAMS.execution, CPU, "code").train("both", arm, output)


def fitted(learner, params, data):
    found = LEARNERS[learner].fit(data, params, 3, CPU, lambda n: None)
    return StoredClassifier(learner, found, 3, 0)


@pytest.mark.parametrize("mixes", [False, True])
def test_it_says_what_its_members_say_on_average(tmp_path, mixes):
    real, new = easy_images(), easy_images(seed=5)
    made = LabelledImages(new.images, new.targets.roll(1, 1), torch.arange(len(new)))
    data = TrainingSet([real, made] if mixes else [real], real)
    params = parsed(CNN, PROBE)
    both = fitted("ensemble", params, data)
    alone = [fitted(member.learner, member, data) for member in params.members]
    said = [classifier.predict_proba(new.images, CPU) for classifier in alone]
    assert np.abs(said[0] - said[1]).max() > 0.1
    assert np.allclose(both.predict_proba(new.images, CPU), (said[0] + said[1]) / 2, atol=1e-6)
    assert both.curve == alone[0].curve
    save_classifier(both, tmp_path / "both.safetensors")
    again = load_classifier(tmp_path / "both.safetensors")
    assert np.array_equal(again.predict_proba(new.images, CPU), both.predict_proba(new.images, CPU))


def test_what_decides_it_is_what_decides_its_members():
    plain = Ensemble.settings(parsed(CNN, PROBE), False, CPU)
    assert plain == Ensemble.settings(parsed(CNN, PROBE, seeds=[7]), False, CPU)
    assert plain != Ensemble.settings(parsed(CNN, {**PROBE, "C": 2.0}), False, CPU)
    assert plain != Ensemble.settings(parsed(PROBE, CNN), False, CPU)
    assert Ensemble.num_units(parsed(CNN, PROBE)) == 12 * 8 + 1


def test_an_arm_is_trained_as_any_other_and_its_teacher_is_that_of_all_members(task, tmp_path, capfd):
    """A CNN with soft labels, and a probe that has learned from real images only."""
    taught = {"soft_labels": "teacher", "teacher": TeacherParams(features=SHIPPED, C=1.0), "seeds": [0]}
    params = parsed(CNN, PROBE).model_copy(update=taught)
    train(params, task, tmp_path / "both")
    (both,) = load_classifiers(tmp_path / "both")
    assert both.num_images == 12 + 24
    images = ImageSetReader(tmp_path / "data/generated/inversion").mapped().tensor()
    alone = []
    for member in params.members:
        soft = taught if member.learner == "cnn" else {"seeds": [0]}
        train(member.model_copy(update=soft), task, tmp_path / member.learner)
        alone.append(load_classifiers(tmp_path / member.learner)[0].predict_proba(images, CPU))
    assert np.allclose(both.predict_proba(images, CPU), np.mean(alone, axis=0), atol=1e-6)
    before = (tmp_path / "both/part-00000.safetensors").read_bytes()
    capfd.readouterr()
    train(params, task, tmp_path / "both")
    assert "1 of 1 parts are already finished" in "".join(capfd.readouterr())
    assert (tmp_path / "both/part-00000.safetensors").read_bytes() == before


BAD = [
    ([CNN], {}, r"train\.both\.members = .*at least 2"),
    ([CNN, {**PROBE, "seeds": [0]}], {}, r"members\.1: seeds is not a member's; write it beside members"),
    ([CNN, {**PROBE, "soft_labels": "teacher"}], {}, r"members\.1: soft_labels is not a member's"),
    (
        [CNN, {"learner": "prob"}],
        {},
        r"members\.1: learner = 'prob': no such learner \(did you mean probe\?\)",
    ),
    (
        [CNN, {"learner": "ensemble"}],
        {},
        r"members\.1: learner = 'ensemble': each member names a learner other",
    ),
    ([CNN, {**PROBE, "C": 0.0}], {}, r"train\.both\.members\.1\.C: 0\.0 is neither"),
    ([{**CNN, "lrr": 1.0}, PROBE], {}, r"train\.both\.members\.0\.lrr: unknown parameter"),
    ([CNN, PROBE], {"choose_real": "cross_validation"}, r"train\.both\.choose_real: unknown parameter"),
]


@pytest.mark.parametrize(("members", "more", "message"), BAD)
def test_bad_values(members, more, message):
    with pytest.raises(UserError, match=message) as error:
        parsed(*members, **more)
    assert "\n" not in str(error.value)
