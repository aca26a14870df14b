"""EuroSAT RGB (Helber et al. 2019), images of 64x64 by torchvision, in the split of Zhou et al. 2022 (CoOp):
13,500 training, 5,400 validation, 8,100 test.
"""

import json
from pathlib import Path

import numpy as np
from torchvision.datasets import EuroSAT

from dinv.errors import UserError
from dinv.sources.base import RawImages, RawSplits
from dinv.sources.downloaded import downloads, fetch, remove_if_incomplete
from dinv.sources.image_folder import read_picture

NUM_FILES = 27_000
SPLIT = "split_zhou_EuroSAT.json"


def load(root: Path, seed: int) -> RawSplits:
    """The split's file is not downloaded: the CoOp repository links to it."""
    images = downloads(root) / "eurosat/2750"
    remove_if_incomplete(images, "*/*.jpg", NUM_FILES)
    data = fetch("eurosat", root, "eurosat/EuroSAT.zip", lambda folder: EuroSAT(folder, download=True))
    splits = _read_split(images.parent / SPLIT)
    train, val, test = (_images(images, splits[name], data.class_to_idx) for name in ("train", "val", "test"))
    return RawSplits(list(data.classes), train, val, test)


def _read_split(path: Path) -> dict[str, list[str]]:
    """Split -> paths below the folder of images."""
    try:
        rows = json.loads(path.read_text())
        return {split: [row[0] for row in rows[split]] for split in ("train", "val", "test")}
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; put it there from github.com/KaiyangZhou/CoOp (DATASETS.md), or use "
            f"data.source = image_folder with data.root = {path.parent / '2750'}"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not the split's JSON ({error!r}); fetch it again") from error


def _images(folder: Path, paths: list[str], label_of: dict[str, int]) -> RawImages:
    unknown = [path for path in paths if Path(path).parent.name not in label_of]
    if unknown:
        raise UserError(f"{folder.parent / SPLIT}: {unknown[0]!r} is in none of EuroSAT's classes")
    labels = [label_of[Path(path).parent.name] for path in paths]
    return RawImages(paths, np.asarray(labels, np.int64), lambda i: read_picture(folder / paths[i]))
