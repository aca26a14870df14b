"""What a finished run leaves, made up: small, without a model, with class names that are not safe to print."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import tiny
from ruamel.yaml import YAML

from dinv.classify.architectures import create_classifier
from dinv.classify.base import Fitted
from dinv.classify.store import StoredClassifier, save_classifier
from dinv.features.worker import write_features
from dinv.images.image_set import ImageSet, save_image_set
from dinv.metrics.image_sets import COLUMNS

CLASSES = ["<b>bold</b> & co", "a|b *x*", "T-shirt/top"]
SEEDS = (0, 1, 2)
# Arm -> test accuracy of each seed.
TEST = {"real": (70.0, 71.0, 72.0), "synthetic": (60.0, 71.5, 74.5), "mixed": (73.0, 74.5, 74.0)}
VAL = {"real": (71.0, 71.0, 71.0), "synthetic": (90.0, 50.0, 50.0), "mixed": (75.0, 76.0, 77.0)}
CONFUSED = {"real": {(0, 1): 7, (1, 2): 2}, "mixed": {(0, 1): 3, (2, 0): 5}}


def make(root, test=TEST, val=VAL, **params):
    """A run in a folder; `params` are written section__block__key=value."""
    root.mkdir(parents=True, exist_ok=True)
    document = YAML(typ="safe").load((tiny.ROOT / "params.yaml").read_text())
    document["arms"].pop("reconstruction")
    document["generate"].pop("reconstruction")
    for name, value in params.items():
        *sections, key = name.split("__")
        place = document
        for section in sections:
            place = place[section]
        place[key] = value
    with (root / "params.yaml").open("w") as file:
        YAML().dump(document, file)
    write_metrics(root / "metrics", test, val)
    write_data(root / "data")
    write_lock(root, document)
    shutil.copytree(
        tiny.ROOT / "data/bundled/cells",
        root / "data/bundled/fashion-mnist",
        ignore=shutil.ignore_patterns("*.parquet"),
    )
    for folder, licence in (("fashion-ldm", "creativeml-openrail-m"), ("fashion-features", "mit")):
        (root / "models" / folder).mkdir(parents=True)
        (root / "models" / folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n")
    return root


def write_metrics(folder, test, val):
    folder.mkdir(parents=True)
    scores = [
        (arm, seed, split, value, value - 0.5, 5.0)
        for split, of_arms in (("val", val), ("test", test))
        for arm, values in of_arms.items()
        for seed, value in zip(SEEDS, values, strict=True)
    ]
    names = ["arm", "seed", "split", "top1_accuracy", "balanced_accuracy", "expected_calibration_error"]
    save(folder / "accuracy.csv", scores, names)
    classes = [
        (arm, seed, name, value + 10 * k * (arm == "mixed") - 5 * (arm == "mixed"))
        for arm, values in test.items()
        for seed, value in zip(SEEDS, values, strict=True)
        for k, name in enumerate(CLASSES)
    ]
    save(folder / "class_accuracy.csv", classes, ["arm", "seed", "class", "accuracy"])
    confusion = [
        (arm, CLASSES[a], CLASSES[p], n)
        for arm, wrong in CONFUSED.items()
        for (a, p), n in {**{(k, k): 40 for k in range(3)}, **wrong}.items()
    ]
    save(folder / "confusion.csv", confusion, ["arm", "actual", "predicted", "count"])
    losses = [(step, arm, 2 / step) for step in (1, 2, 4) for arm in test]
    save(folder / "classifier_loss.csv", losses, ["step", "arm", "loss"])
    learned = [("embeddings", kind, step, 0.1 / step) for kind in ("training", "heldout") for step in (1, 2)]
    save(folder / "learned_loss.csv", learned, ["learned", "kind", "step", "loss"])
    (folder / "table.md").write_text(
        "| arm | training images |\n|---|---|\n| real | 6 |\n| synthetic | 12 |\n| mixed | 18 |\n"
    )
    shutil.copy(tiny.ROOT / "metrics/grid.png", folder / "grid.png")
    numbers = [
        ("domain", images, 12, metric, value, 0.01, 2)
        for images, share in (("inversion", 0.625), ("unseen", 0.5))
        for metric, value in (
            ("nearest_train_distance", 1.25),
            ("nearest_unseen_distance", 1.5),
            ("share_nearer_train", share),
        )
    ]
    (folder / "image_sets").mkdir()
    save(folder / "image_sets/domain.csv", numbers, COLUMNS)


def save(path, rows, columns):
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


def write_data(folder):
    """Six real images; twelve generated, two of each; the last but one is a copy of the first real one."""
    real = tiny.random_images(6, channels=1)
    made = tiny.random_images(12, channels=1, seed=1)
    made[10] = real[0]
    labels = np.arange(6) % 3
    ids = [f"real-{i}" for i in range(6)]
    save_image_set(ImageSet(real, labels, ids, CLASSES), folder / "real/train")
    sources = [ids[i % 6] for i in range(12)]
    facts = {
        "source_id": sources,
        "partner_id": [ids[(i + 3) % 6] for i in range(12)],
        "interpolation": [0.25] * 12,
        "scheduler": ["ddim"] * 12,
        "num_inference_steps": [3] * 12,
        "guidance_scale": [2.0] * 12,
        "unet_passes": [6] * 12,
    }
    made_ids = [f"{source}#{i // 6}" for i, source in enumerate(sources)]
    save_image_set(
        ImageSet(made, np.tile(labels, 2), made_ids, CLASSES, facts), folder / "generated/inversion"
    )
    for name, images in (("real", real), ("inversion", made)):
        (folder / "features/domain" / name).mkdir(parents=True)
        flat = images.reshape(len(images), -1)[:, :8].astype(np.float32)
        write_features(flat, folder / "features/domain" / name / "part-00000.safetensors")
    for seed in (0, 1):
        path = folder / "classifiers/real" / f"part-0000{seed}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_classifier(classifier(seed), path)


def classifier(seed):
    import torch

    torch.manual_seed(seed)
    build = {"architecture": "convnet3", "num_channels": 1, "num_classes": 3, "image_size": 16}
    network = create_classifier(**build, mean=torch.full((1,), 0.5), std=torch.full((1,), 0.2))
    return StoredClassifier("cnn", Fitted(dict(network.state_dict()), build, [(1, 2.0)]), seed, 6)


def write_lock(root, params):
    used = {"arms.mixed": params["arms"]["mixed"], "train.cnn": params["train"]["cnn"]}
    stages = {
        "train@mixed": {"params": {"params.yaml": used}, "outs": [{"path": "x", "size": 1_500_000}]},
        "generate@inversion": {"outs": [{"path": "y", "size": 2_000_000}, {"path": "z", "size": 500_000}]},
    }
    with (root / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": stages}, file)


def add_pilot(root, name="first"):
    (root / "metrics/pilot").mkdir(parents=True, exist_ok=True)
    sides = {
        "without": {"mean": 70.04, "low": 69.0, "high": 71.0},
        "with": {"mean": 72.0, "low": 70.0, "high": 74.0},
        "difference": {"mean": 1.96, "low": -1.0, "high": 4.96},
    }
    words = {
        "sentence": "cannot tell <i>yet</i>",
        "levels": [{"k": 20, **sides}],
        "next": "Label more images.",
    }
    (root / f"metrics/pilot/{name}.json").write_text(json.dumps(words))
    shutil.copy(Path(tiny.ROOT / "metrics/grid.png"), root / f"metrics/pilot/{name}.png")
