"""Fashion-MNIST in its published idx files (Xiao, Rasul, Vollgraf 2017; MIT licence).

The root holds the four .gz files: the bundled sample, Debian's dataset-fashion-mnist, or
`FashionMNIST/raw` of a torchvision download.
"""

from pathlib import Path

import numpy as np

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits, array_images
from dinv.sources.idx import read_idx

CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
# The bundled sample holds these; training images from 10,000 on pre-trained the bundled generator,
# and the labelled task must not touch them.
TASK_POOL_SIZE = 5_000


def load(root: Path, seed: int) -> RawSplits:
    """Read the labelled pool (training images 0 to 4,999) and the test split."""
    train = _split(root, "train", TASK_POOL_SIZE)
    return RawSplits(CLASS_NAMES, train, None, _split(root, "t10k", None))


def _split(root: Path, name: str, limit: int | None) -> RawImages:
    images = read_idx(root / f"{name}-images-idx3-ubyte.gz")[:limit]
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz")[:limit].astype(np.int64)
    if len(images) != len(labels):
        raise UserError(f"{root}: {len(images)} {name} images but {len(labels)} labels; fetch again")
    return array_images(name, images, labels)
