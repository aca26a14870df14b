"""Sources by name: a new one is a file here and a line below (and its name in dinv/params.py)."""

from collections.abc import Callable
from pathlib import Path

from dinv.sources import (
    cifar,
    eurosat,
    fashion_mnist,
    image_csv,
    image_folder,
    imagenette,
    medmnist,
    stl10,
)
from dinv.sources.base import RawSplits

SOURCES: dict[str, Callable[[Path, int], RawSplits]] = {
    "fashion_mnist": fashion_mnist.load,
    "image_folder": image_folder.load,
    "image_csv": image_csv.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
    "stl10": stl10.load,
    "imagenette": imagenette.load,
    "eurosat": eurosat.load,
    "pathmnist": medmnist.loader("pathmnist"),
    "dermamnist": medmnist.loader("dermamnist"),
    "bloodmnist": medmnist.loader("bloodmnist"),
}
