"""STL-10 (Coates, Lee, Ng 2011): its 5,000 labelled and 8,000 test images of 96x96, by torchvision."""

from pathlib import Path

import numpy as np
from torchvision.datasets import STL10

from dinv.sources.base import RawImages, RawSplits, array_images
from dinv.sources.downloaded import fetch


def load(root: Path, seed: int) -> RawSplits:
    """The 100,000 images without labels are not used."""

    def split(name: str) -> STL10:
        return fetch("stl10", root, STL10.filename, lambda folder: STL10(folder, name, download=True))

    train, test = split("train"), split("test")
    return RawSplits(list(train.classes), _images("train", train), None, _images("test", test))


def _images(name: str, data: STL10) -> RawImages:
    labels = np.asarray(data.labels, np.int64)
    return array_images(name, np.ascontiguousarray(data.data.transpose(0, 2, 3, 1)), labels)
