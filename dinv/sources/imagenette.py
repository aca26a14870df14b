"""Imagenette 2 (fast.ai), full size: 9,469 training images; its 3,925 validation images are for test."""

from pathlib import Path

import numpy as np
from torchvision.datasets import Imagenette

from dinv.sources.base import RawImages, RawSplits
from dinv.sources.downloaded import Unpacked, fetch
from dinv.sources.image_folder import read_picture

NUM_FILES = 9_469 + 3_925


def load(root: Path, seed: int) -> RawSplits:
    """As the paper does."""
    unpacked = Unpacked("imagenette2", "*/*/*.JPEG", NUM_FILES)

    def split(name: str) -> Imagenette:
        def make(folder: Path) -> Imagenette:
            return Imagenette(folder, name, download=True)

        return fetch("imagenette", root, "imagenette2.tgz", make, unpacked)

    train, test = split("train"), split("val")
    names = [synonyms[0] for synonyms in train.classes]
    return RawSplits(names, _images("train", train), None, _images("test", test))


def _images(name: str, data: Imagenette) -> RawImages:
    paths, labels = zip(*data._samples, strict=True)
    ids = [f"{name}/{Path(path).parent.name}/{Path(path).name}" for path in paths]
    return RawImages(ids, np.asarray(labels, np.int64), lambda i: read_picture(Path(paths[i])))
