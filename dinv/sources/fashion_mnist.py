"""Fashion-MNIST in its published idx files (Xiao, Rasul, Vollgraf 2017; MIT licence).

The root holds the four .gz files: the bundled sample, Debian's dataset-fashion-mnist, or
`FashionMNIST/raw` of a torchvision download.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits, array_images

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


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzip-compressed; raises UserError when it is damaged."""
    try:
        with gzip.open(path) as file:
            raw = file.read()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; data.root must hold the four Fashion-MNIST .gz files"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch it again") from error
    num_dims = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * num_dims
    shape = [int(n) for n in np.frombuffer(raw[4:header], ">u4")] if len(raw) >= header else []
    body = raw[header:]
    if len(shape) != num_dims or num_dims == 0 or math.prod(shape) != len(body):
        raise UserError(f"{path}: not an idx file of bytes, or truncated; fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _split(root: Path, name: str, limit: int | None) -> RawImages:
    images = read_idx(root / f"{name}-images-idx3-ubyte.gz")[:limit]
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz")[:limit].astype(np.int64)
    if len(images) != len(labels):
        raise UserError(f"{root}: {len(images)} {name} images but {len(labels)} labels; fetch again")
    return array_images(name, images, labels)
