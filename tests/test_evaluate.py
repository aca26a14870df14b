"""The stages evaluate and measure in parts: tables in order of params.yaml, stale outputs, sizes."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from dinv.classify.arms import Arm
from dinv.errors import UserError
from dinv.images.image_set import ImageSet, save_image_set
from stages import evaluate, measure
from stages.stale import remove_stale

CPU = torch.device("cpu")
CLASSES = ["bag", "boot"]


@dataclass
class Known:
    """A classifier that is always sure of one class."""

    seed: int
    always: int
    curve: list = field(default_factory=list)

    def predict_proba(self, images, device):
        assert images.dtype == torch.uint8 and images.shape[1] == 1
        return np.eye(2, dtype=np.float32)[[self.always] * len(images)]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A current folder with real images: 4 of test, 2 of validation, 3 to train on."""
    monkeypatch.chdir(tmp_path)
    for split, labels in (("test", [0, 0, 0, 1]), ("val", [1, 0]), ("train", [1, 0, 1])):
        save_image_set(image_set(labels), tmp_path / "data/real" / split)
    return tmp_path


def image_set(labels, rows=None, start=0):
    pixels = np.arange(start, start + len(labels), dtype=np.uint8)[:, None, None, None]
    images = np.ascontiguousarray(np.broadcast_to(pixels, (len(labels), 8, 8, 1)))
    ids = [f"{i}" for i in range(len(labels))]
    return ImageSet(images, np.array(labels, np.int64), ids, CLASSES, {"row": rows} if rows else {})


def test_every_classifier_is_scored_and_the_first_of_each_arm_has_its_confusion(data):
    trained = {"odd": [Known(4, 1)], "even": [Known(1, 0), Known(0, 1)]}
    found = evaluate.evaluate(trained, CPU)
    top1 = found["scores"].set_index(["arm", "seed", "split"])["top1_accuracy"].to_dict()
    assert top1 == {
        ("odd", 4, "val"): 50.0,
        ("odd", 4, "test"): 25.0,
        ("even", 1, "val"): 50.0,
        ("even", 1, "test"): 75.0,
        ("even", 0, "val"): 50.0,
        ("even", 0, "test"): 25.0,
    }
    assert found["confusion"].values.tolist() == [
        ["odd", "bag", "boot", 3],
        ["odd", "boot", "boot", 1],
        ["even", "bag", "bag", 3],
        ["even", "boot", "bag", 1],
    ]
    assert found["classes"].values.tolist()[:2] == [["odd", 4, "bag", 0.0], ["odd", 4, "boot", 100.0]]


def test_without_validation_images_there_are_scores_of_test_only(data):
    save_image_set(image_set([]), data / "data/real/val")
    found = evaluate.evaluate({"real": [Known(0, 0)]}, CPU)
    assert list(found["scores"]["split"]) == ["test"]


def test_loss_curves_are_means_over_seeds_and_may_be_missing():
    curved = [Known(0, 0, [(10, 1.0), (20, 0.5)]), Known(1, 0, [(10, 3.0), (20, 1.5)])]
    found = evaluate.classifier_losses({"b": curved, "probe": [Known(0, 0)], "a": curved[:1]})
    assert found.values.tolist() == [[10, "b", 2.0], [20, "b", 1.0], [10, "a", 1.0], [20, "a", 0.5]]
    assert list(evaluate.classifier_losses({"probe": [Known(0, 0)]}).columns) == ["step", "arm", "loss"]


def test_learned_losses_name_what_was_learned(data):
    (data / "data/curves").mkdir()
    for name, last in (("embeddings", 0.25), ("tokens", 0.5)):
        text = f"step,kind,loss\n2,training,0.9\n0,heldout,1.0\n4,heldout,{last}\n"
        (data / f"data/curves/{name}.csv").write_text(text)
    found = evaluate.learned_losses(["tokens", "embeddings"])
    assert list(found.columns) == ["learned", "kind", "step", "loss"] and len(found) == 6
    assert evaluate.heldout_losses(found) == {
        "tokens": {"first": 1.0, "last": 0.5},
        "embeddings": {"first": 1.0, "last": 0.25},
    }


def test_nothing_learned_leaves_a_header_and_no_number():
    found = evaluate.learned_losses([])
    assert found.to_csv(index=False) == "learned,kind,step,loss\n" and evaluate.heldout_losses(found) == {}


def test_grid_has_a_real_row_and_the_previews_in_order_of_blocks_and_classes(data):
    rows = ["lambda 0", "lambda 1", "lambda 1", "lambda 0"]
    save_image_set(image_set([1, 1, 0, 0], rows, start=10), data / "data/previews/b")
    save_image_set(image_set([0, 1], ["vae", "vae"], start=20), data / "data/previews/a")
    found = [(label, images[:, 0, 0, 0].tolist()) for label, images in evaluate.grid_rows(["b", "a"])]
    assert found == [
        ("real", [1, 0]),  # the first of each class
        ("b:\nlambda 0", [13, 10]),
        ("lambda 1", [12, 11]),
        ("a:\nvae", [20, 21]),
    ]


def make_outputs(root, folder, *names, ignored=()):
    for name in names:
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.write_text("x")
        else:
            path.mkdir()
            (path / "part-00000.parquet").write_text("x")
    (root / folder / ".gitignore").write_text("".join(f"/{name}\n" for name in ignored))


def test_outputs_that_params_yaml_no_longer_names_are_removed_with_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_outputs(tmp_path, "data/generated", "kept", "old", "mine", ignored=["kept", "old", "gone"])
    make_outputs(tmp_path, "data/curves", "kept.csv", "old.csv", ignored=["kept.csv", "old.csv"])
    expected = {"data/generated": {"kept": 1}, "data/curves": ["kept"], "data/absent": []}
    remove_stale(expected)
    out = capsys.readouterr().out
    assert out.count("removed") == 2 and "data/generated/old" in out and "data/curves/old.csv" in out
    left = sorted(
        p.name for folder in ("generated", "curves") for p in (tmp_path / "data" / folder).iterdir()
    )
    assert left == [".gitignore", ".gitignore", "kept", "kept.csv", "mine"], "what DVC did not make stays"
    remove_stale(expected)
    assert capsys.readouterr().out == ""


def arm(images):
    return Arm(images=images, real=False, learner="cnn")


def test_measured_sets_are_those_that_arms_learn_from():
    arms = {"a": arm("data/generated/x"), "real": arm("data/real/train"), "b": arm("data/generated/x")}
    assert measure.compared(arms) == {
        "real": "data/real/train",
        "x": "data/generated/x",
        "test": "data/real/test",
    }
    with pytest.raises(UserError, match=r"generate\.unseen: unseen means real images in the tables; rename"):
        measure.compared({"a": arm("data/generated/unseen")})


def measure_params(**update):
    return tiny.PARAMS.measure.model_copy(update={"num_images": 100, "num_neighbors": 5, **update})


@pytest.mark.parametrize(
    ("available", "sizes"),
    [
        ({"real": 20, "x": 200, "y": 60, "test": 1000}, [20, 60, 100]),
        ({"real": 20, "x": 200, "test": 80}, [20, 40]),
        ({"real": 20, "x": 200, "test": 14}, [7]),
        ({"real": 3, "x": 6, "test": 1000}, [6]),
        ({"real": 3, "x": 5, "test": 1000}, []),
        ({"real": 3, "x": 200, "test": 11}, []),
    ],
)
def test_sets_are_compared_at_their_own_size_as_far_as_test_images_go(available, sizes):
    assert measure.sizes_to_compare(available, measure_params()) == sizes
    rows = measure.choose_images(available, measure_params())
    counts = {name: len(chosen) for name, chosen in rows.items()}
    assert counts == {name: min(n, 400 if name == "test" else 100) for name, n in available.items()}
    assert all((np.diff(chosen) > 0).all() for chosen in rows.values())


def test_json_has_generated_images_at_their_largest_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        ("net", images, n, metric, float(n), 0.1, 10)
        for images in ("real", "x", "unseen")
        for n, metric in ((20, "recall"), (100, "recall"), (150, "share_nearer_train"))
    ]
    measure.write("net", pd.DataFrame(rows, columns=measure.COLUMNS))
    text = (tmp_path / "metrics/image_sets/net.json").read_text()
    assert text.split() == [
        "{",
        '"x":',
        "{",
        '"recall":',
        "100.0,",
        '"share_nearer_train":',
        "150.0",
        "}",
        "}",
    ]
    header = (tmp_path / "metrics/image_sets/net.csv").read_text().splitlines()[0]
    assert header == "features,images,num_images,metric,value,std,num_draws"


def test_a_run_without_enough_images_leaves_empty_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure.write("net", pd.DataFrame(columns=measure.COLUMNS))
    assert (tmp_path / "metrics/image_sets/net.json").read_text() == "{}\n"
    assert len((tmp_path / "metrics/image_sets/net.md").read_text().splitlines()) == 2
