"""Sources by name: a new one is a file here and a line below."""

import pkgutil
from collections.abc import Callable
from pathlib import Path

from dinv.sources.base import RawSplits

# Name -> where its function load(root, seed) is. It is imported when it is asked for: some need torchvision.
SOURCES = {
    "fashion_mnist": "dinv.sources.fashion_mnist:load",
    "image_folder": "dinv.sources.image_folder:load",
    "image_csv": "dinv.sources.image_csv:load",
    "cifar10": "dinv.sources.cifar:load_cifar10",
    "cifar100": "dinv.sources.cifar:load_cifar100",
    "stl10": "dinv.sources.stl10:load",
    "imagenette": "dinv.sources.imagenette:load",
    "eurosat": "dinv.sources.eurosat:load",
    "pathmnist": "dinv.sources.medmnist:load_pathmnist",
    "dermamnist": "dinv.sources.medmnist:load_dermamnist",
    "bloodmnist": "dinv.sources.medmnist:load_bloodmnist",
}


def find_source(name: str) -> Callable[[Path, int], RawSplits]:
    """The function that loads a source of SOURCES."""
    found: Callable[[Path, int], RawSplits] = pkgutil.resolve_name(SOURCES[name])
    return found
