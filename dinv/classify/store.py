"""Trained classifiers as self-describing safetensors."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dinv.classify.base import Fitted, Predict
from dinv.classify.registry import LEARNERS
from dinv.errors import UserError
from dinv.files import part_paths

BATCH_SIZE = 100  # the allocator returns the memory of larger ones after every layer


@dataclass(frozen=True)
class StoredClassifier:
    """A trained classifier, the seed and number of images of its training, and its training curve."""

    learner: str
    fitted: Fitted
    seed: int
    num_images: int

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, training loss)."""
        return self.fitted.curve

    def on(self, device: torch.device) -> Predict:
        """Its predictions on a device."""
        predict: Predict = LEARNERS[self.learner].load(self.fitted.tensors, self.fitted.build, device)
        return predict

    def predict_proba(self, images: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
        """Class probabilities float32 [N, M] of uint8 images [N, C, H, W]."""
        return predict_proba(self.on(device), images, device)


@torch.no_grad()
def predict_proba(predict: Predict, images: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
    """Class probabilities float32 [N, M] of uint8 images [N, C, H, W], which may be mapped from a file."""
    return np.concatenate([predict(b.to(device)).cpu().numpy() for b in images.split(BATCH_SIZE)])


def save_classifier(classifier: StoredClassifier, path: Path) -> None:
    """Write tensors, curve and what is needed to rebuild it."""
    fitted = classifier.fitted
    steps, losses = zip(*fitted.curve, strict=True) if fitted.curve else ((), ())
    tensors = {f"classifier.{k}": v.cpu().contiguous() for k, v in fitted.tensors.items()}
    tensors |= {"curve.step": torch.tensor(steps), "curve.loss": torch.tensor(losses)}
    meta = {
        "learner": classifier.learner,
        "build": fitted.build,
        "num_images": classifier.num_images,
        "seed": classifier.seed,
    }
    # One entry only: safetensors writes several in an order that changes from process to process.
    save_file(tensors, path, {"classifier": json.dumps(meta, sort_keys=True)})


def load_classifier(path: Path) -> StoredClassifier:
    """Read one file; raises UserError when it is missing, damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {})["classifier"])
        curve = list(zip(tensors.pop("curve.step").tolist(), tensors.pop("curve.loss").tolist(), strict=True))
        own = {name.removeprefix("classifier."): tensor for name, tensor in tensors.items()}
        fitted = Fitted(own, meta["build"], curve)
        stored = StoredClassifier(meta["learner"], fitted, int(meta["seed"]), int(meta["num_images"]))
        stored.on(torch.device("cpu"))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path}: missing, damaged or not a classifier ({reason}); run dvc checkout"
        ) from error
    return stored


def load_classifiers(folder: Path) -> list[StoredClassifier]:
    """Read every part of a folder, in order; raises UserError when there is none."""
    return [load_classifier(path) for path in part_paths(folder, ".safetensors", "classifiers")]
