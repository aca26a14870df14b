"""Trained classifiers as self-describing safetensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dinv.classify.architectures import Classifier, create_classifier
from dinv.classify.params import TrainParams
from dinv.classify.train import TrainingResult
from dinv.errors import UserError


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier in eval mode, the seed and number of images of its training, and its training curve."""

    classifier: Classifier
    seed: int
    num_images: int
    curve: list[tuple[int, float]]


def save_classifier(
    result: TrainingResult, params: TrainParams, seed: int, num_images: int, path: Path
) -> None:
    """Write weights, curve and what is needed to rebuild the network."""
    tensors = {k: v.cpu().contiguous() for k, v in result.classifier.state_dict().items()}
    steps, losses = zip(*result.curve, strict=True)
    tensors |= {"curve.step": torch.tensor(steps), "curve.loss": torch.tensor(losses)}
    build = {
        "architecture": params.architecture,
        "width": params.width,
        "num_channels": result.classifier.mean.shape[1],
        "num_classes": result.num_classes,
        "image_size": result.image_size,
    }
    # One entry only: safetensors writes several in an order that changes from process to process.
    meta = json.dumps({"build": build, "num_images": num_images, "seed": seed}, sort_keys=True)
    save_file(tensors, path, {"classifier": meta})


def load_classifier(path: Path) -> StoredClassifier:
    """Read one file; raises UserError when it is missing, damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {})["classifier"])
        build, seed, num_images = meta["build"], int(meta["seed"]), int(meta["num_images"])
        curve = list(zip(tensors.pop("curve.step").tolist(), tensors.pop("curve.loss").tolist(), strict=True))
        one = torch.ones(build["num_channels"])
        classifier = create_classifier(**build, mean=one, std=one)
        classifier.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: missing, damaged or not a classifier ({reason}); run dvc checkout"
        ) from error
    return StoredClassifier(classifier.eval(), seed, num_images, curve)


def load_classifiers(folder: Path) -> list[StoredClassifier]:
    """Read every part of a folder, in order; raises UserError when there is none."""
    paths = sorted(folder.glob("part-*.safetensors"))
    if not paths:
        raise UserError(f"{folder}: no classifiers there; run dvc repro train first")
    return [load_classifier(path) for path in paths]
