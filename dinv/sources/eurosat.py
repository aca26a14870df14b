"""EuroSAT RGB (Helber et al. 2019), images of 64x64 by torchvision, in the split of Zhou et al. 2022 (CoOp):
13,500 training, 5,400 validation, 8,100 test.

The split's file is not downloaded, since the CoOp repository links to it: it is put into data.root by
hand, where DVC sees it, unlike the archive.
"""

import json
from pathlib import Path

import numpy as np
from torchvision.datasets import EuroSAT

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits
from dinv.sources.downloaded import Unpacked, downloads, fetch
from dinv.sources.image_folder import read_picture

NUM_FILES = 27_000
SPLIT = "split_zhou_EuroSAT.json"


def load(root: Path, seed: int) -> RawSplits:
    """Its own three splits."""
    unpacked = Unpacked("eurosat/2750", "*/*.jpg", NUM_FILES)

    def make(folder: Path) -> EuroSAT:
        return EuroSAT(folder, download=True)

    splits = _read_split(root / SPLIT)
    data = fetch("eurosat", root, "eurosat/EuroSAT.zip", make, unpacked)
    images = downloads(root) / unpacked.path
    label_of = data.class_to_idx
    train, val, test = (_images(root, images, splits[name], label_of) for name in ("train", "val", "test"))
    return RawSplits(list(data.classes), train, val, test)


def _read_split(path: Path) -> dict[str, list[str]]:
    """Split -> paths below the folder of images."""
    try:
        rows = json.loads(path.read_text())
        return {split: [row[0] for row in rows[split]] for split in ("train", "val", "test")}
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; get it from github.com/KaiyangZhou/CoOp (DATASETS.md), put it there and "
            "git add it: runs in a copy of the project need it too"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not the split's JSON ({error!r}); fetch it again") from error


def _images(root: Path, folder: Path, paths: list[str], label_of: dict[str, int]) -> RawImages:
    unknown = [path for path in paths if Path(path).parent.name not in label_of]
    if unknown:
        raise UserError(f"{root / SPLIT}: {unknown[0]!r} is in none of EuroSAT's classes")
    labels = [label_of[Path(path).parent.name] for path in paths]
    return RawImages(paths, np.asarray(labels, np.int64), lambda i: read_picture(folder / paths[i]))
