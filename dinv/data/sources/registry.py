"""Sources by name: a new one is a file here and a line below (and its name in dinv/config.py)."""

from collections.abc import Callable
from pathlib import Path

from dinv.data.sources import fashion_mnist, image_folder
from dinv.data.sources.base import RawSplits

SOURCES: dict[str, Callable[[Path, int], RawSplits]] = {
    "fashion_mnist": fashion_mnist.load,
    "image_folder": image_folder.load,
}
