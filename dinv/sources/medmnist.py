"""PathMNIST, DermaMNIST and BloodMNIST (Yang et al. 2023) at 28x28, with their own validation splits."""

from pathlib import Path
from typing import Any

import numpy as np

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits, array_images
from dinv.sources.downloaded import fetch


def load_pathmnist(root: Path, seed: int) -> RawSplits:
    """Colon tissue, nine classes."""
    return _load("pathmnist", root)


def load_dermamnist(root: Path, seed: int) -> RawSplits:
    """Skin lesions, seven classes."""
    return _load("dermamnist", root)


def load_bloodmnist(root: Path, seed: int) -> RawSplits:
    """Blood cells, eight classes."""
    return _load("bloodmnist", root)


def _load(name: str, root: Path) -> RawSplits:
    try:
        import medmnist  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UserError(f"data.source = {name!r} needs medmnist: pip install -e '.[medmnist]'") from error
    info = medmnist.INFO[name]
    make = getattr(medmnist, info["python_class"])

    def images(split: str) -> RawImages:
        def load(folder: Path) -> Any:
            return make(split=split, root=str(folder), download=True)

        data = fetch(name, root, f"{name}.npz", load)
        return array_images(split, data.imgs, data.labels.squeeze(1).astype(np.int64))

    names = [info["label"][str(k)] for k in range(len(info["label"]))]
    return RawSplits(names, images("train"), images("val"), images("test"))
