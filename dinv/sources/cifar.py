"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32x32, by torchvision."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from dinv.sources.base import RawImages, RawSplits, array_images
from dinv.sources.downloaded import fetch


def load_cifar10(root: Path, seed: int) -> RawSplits:
    """Ten classes."""
    return _load("cifar10", CIFAR10, root)


def load_cifar100(root: Path, seed: int) -> RawSplits:
    """The hundred fine classes."""
    return _load("cifar100", CIFAR100, root)


def _load(name: str, loader: type[CIFAR10], root: Path) -> RawSplits:
    def split(train: bool) -> CIFAR10:
        return fetch(name, root, loader.filename, lambda folder: loader(folder, train=train, download=True))

    train, test = split(True), split(False)
    return RawSplits(list(train.classes), _images("train", train), None, _images("test", test))


def _images(name: str, data: CIFAR10) -> RawImages:
    return array_images(name, data.data, np.asarray(data.targets, np.int64))
