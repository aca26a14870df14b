"""GeNIe and GeNIe-Ada towards the class that an image is most confused with."""

import numpy as np
import pytest
import tiny
import tiny_methods as methods
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from tiny_methods import make, plan

from dinv.errors import UserError
from dinv.features.params import FeatureNetwork
from dinv.features.watched import FrozenNetwork
from dinv.strategies import confusion, genie
from dinv.strategies.confusion import confused_with

LABELS = np.array([0, 1, 2, 3] * 4)


def blobs(seed=0):
    """Classes on a line, 0 1 2 3: each is nearest to its neighbours."""
    rng = np.random.default_rng(seed)
    return np.stack([LABELS + 0.3 * rng.normal(size=16), rng.normal(size=16) * 0.1], 1).astype(np.float32)


def test_the_most_confused_class_is_that_of_a_probe_which_has_not_seen_the_image():
    x, ids = blobs(), [f"{i:02d}" for i in range(16)]
    found = confused_with(x, LABELS, ids, 4)
    assert found.shape == (16, 3)
    for row, (others, own) in enumerate(zip(found, LABELS, strict=True)):
        fold = [i for i in range(16) if i // 4 == row // 4]  # four folds of one image of each class
        kept = [i for i in range(16) if i not in fold]
        probe = LogisticRegression(C=1.0, max_iter=1000).fit(x[kept].astype(float), LABELS[kept])
        p = probe.predict_proba(x[row : row + 1].astype(float))[0]
        p[own] = -1
        assert others.tolist() == np.argsort(-p)[:3].tolist()
    assert (found[LABELS == 0, 0] == 1).all() and (found[LABELS == 3, 0] == 2).all()


def test_neither_the_order_of_images_nor_a_class_without_any_matters():
    x, ids, order = blobs(), [f"{i:02d}" for i in range(16)], np.random.default_rng(1).permutation(16)
    found = confused_with(x, LABELS, ids, 5)
    assert (found[:, -1] == 4).all()
    assert (confused_with(x[order], LABELS[order], [ids[i] for i in order], 5) == found[order]).all()
    with pytest.raises(UserError, match="a class has one image only"):
        confused_with(x[:5], np.array([0, 0, 1, 1, 2]), ids[:5], 3)


@pytest.fixture
def real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/fashion-features").symlink_to(tiny.ROOT / "models/fashion-features")
    methods.save_class_bank(tmp_path / "data/learned/tokens")
    return methods.save_real(tmp_path / "train")


@pytest.mark.parametrize("name", ["genie", "genie_ada"])
def test_the_most_confused_class_is_taken_first(name, real, model, monkeypatch, tmp_path):
    seen = np.array([[1, 2], [2, 0], [0, 1], [2, 1], [0, 2], [1, 0], [1, 2]])
    monkeypatch.setattr(confusion, "confused_with", lambda features, labels, ids, n: seen)
    block = {**methods.EDIT, "prompt": None, "num_images_per_source": 3, "targets": "confused"}
    strategy = make(name, real, model, tmp_path / "data/learned/tokens", **block, features=methods.FEATURES)
    assert [d.label for d in plan(strategy)] == [*seen[:, 0], *seen[:, 1], *seen[:, 0]]


def test_genie_ada_probes_the_features_that_judge_its_edits(real, model, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(confusion, "confused_with", lambda features, *_: given.append(features))
    folder, block = tmp_path / "data/learned/tokens", {"prompt": None, "features": methods.FEATURES}
    make("genie_ada", real, model, folder, **block)
    assert not given
    make("genie_ada", real, model, folder, **block, targets="confused")
    network = FrozenNetwork.of(FeatureNetwork.model_validate(methods.FEATURES))
    assert (given[0] == network.features_of(real)).all()


@pytest.mark.parametrize("update", [{"targets": "confused"}, {"features": methods.FEATURES}])
def test_features_and_confused_targets_go_together(update):
    block = {**methods.EDIT, "strategy": "genie", "input": "x", **update}
    with pytest.raises(ValidationError, match="go together"):
        genie.GenieParams.model_validate(block)
