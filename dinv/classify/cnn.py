"""The learner `cnn`: a convolutional network by SGD for a fixed number of steps, the same for every arm."""

from pathlib import Path
from typing import Any

import torch

from dinv.classify.architectures import Architecture, create_classifier, load_pretrained
from dinv.classify.base import Advance, Fitted, Predict, TrainingSet
from dinv.classify.training import TrainingParams, train_network, training_settings
from dinv.errors import UserError
from dinv.files import file_digest
from dinv.rng import derive_seed, generator
from dinv.section import Beta

PRETRAINED = Path("models/pretrained")  # a dependency of stage train, so that DVC sees a changed file


class CnnParams(TrainingParams):
    """The network, and what SGD has besides."""

    architecture: Architecture
    pretrained: str | None
    momentum: Beta


class Cnn:
    """The learner."""

    Params = CnnParams

    @staticmethod
    def settings(params: CnnParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """Those of the training; pretrained weights by their bytes."""
        weights = None if params.pretrained is None else file_digest(pretrained_file(params.pretrained))
        return {**training_settings(params, mixes, device), "pretrained": weights}

    @staticmethod
    def num_units(params: CnnParams) -> int:
        """Images in all steps together."""
        return params.num_steps * params.batch_size

    @staticmethod
    def fit(
        data: TrainingSet, params: CnnParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Train for `params.num_steps` steps by SGD.

        Batches, augmentation and initial weights follow from `seed`.
        """
        channels, image_size = data.real.images.shape[1:3]
        build: dict[str, Any] = {
            "architecture": params.architecture,
            "num_channels": channels,
            "num_classes": data.num_classes,
            "image_size": image_size,
        }
        # Global random numbers make the initial weights, torchvision's augmentation and dropout.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "init"))
            mean, std = pixel_statistics(data.real.images)
            classifier = create_classifier(**build, mean=mean, std=std).to(device)
            if params.pretrained is not None:
                load_pretrained(classifier.body, pretrained_file(params.pretrained))
            torch.manual_seed(derive_seed(seed, "training"))
            optimizer = torch.optim.SGD(
                classifier.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
            )
            g = generator(seed, "train")
            curve = train_network(classifier, optimizer, data.sources, params, g, device, advance)
        return Fitted(dict(classifier.state_dict()), build, curve)

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """The network in eval mode."""
        one = torch.ones(build["num_channels"])
        classifier = create_classifier(**build, mean=one, std=one)
        classifier.load_state_dict(tensors)
        classifier.to(device).eval()
        return lambda images: classifier(images).softmax(1)


def pretrained_file(name: str, parameter: str = "pretrained") -> Path:
    """Path of the weights to start from; raises UserError, which names `parameter`, if there is none."""
    path = PRETRAINED / name
    if Path(name).name != name or not path.is_file():
        raise UserError(f"{parameter} = {name!r}: no such file in {PRETRAINED}; put it there, or set null")
    return path


def pixel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std per channel of uint8 [N, C, H, W], of pixels in [0, 1]; read in slices."""
    count = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for batch in images.split(1000):
        for channel in range(images.shape[1]):
            count[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    n = count.sum(1)
    mean = (count * levels).sum(1) / n
    variance = (count * (levels - mean[:, None]).square()).sum(1) / (n - 1)
    return mean.float(), variance.sqrt().float().clamp_min(1e-3)
