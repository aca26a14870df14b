"""Small labelled images packed into large ones: a folder of JPEG mosaics, as Tiny ImageNet lies here.

`NNNN.jpg` is 512x512 and holds 16x16 images of 32x32 in row-major order. `labels.npy` has the class of each
image (the last mosaic is padded); `classes.json`, beside it or in the folder above, the names of the classes.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinv.errors import UserError
from models.pretraining.domain import IMAGE_SIZE, HeldOut

SIDE = 16  # images along each side of a mosaic


class Labelled(NamedTuple):
    """Images uint8 [N, 32, 32, 3], their classes int64 [N], and the names of each class, best known first."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: list[list[str]]


def read_mosaics(folder: Path) -> Labelled:
    """All images of a folder; raises UserError where a file is missing or of another shape."""
    try:
        with (folder / "labels.npy").open("rb") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False).astype(np.int64)
        beside = [p for p in (folder, folder.parent) if (p / "classes.json").is_file()]
        classes = json.loads(((beside or [folder])[0] / "classes.json").read_text())["classes"]
        images = np.concatenate([_cut(path) for path in sorted(folder.glob("*.jpg"))])
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: not a folder of mosaics ({reason}); see models/README.md") from error
    if len(images) < len(labels):
        raise UserError(f"{folder}: {len(images)} images for {len(labels)} labels; a mosaic is missing")
    names = [c["name"].split(", ") for c in sorted(classes, key=lambda c: c["index"])]
    return Labelled(images[: len(labels)], labels, names)


def _cut(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tiles = pixels.reshape(SIDE, IMAGE_SIZE, SIDE, IMAGE_SIZE, 3).swapaxes(1, 2)
    return tiles.reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3)


def held_out_rows(labelled: Labelled, held_out: HeldOut | None) -> NDArray[np.bool_]:
    """Which images training leaves out; raises UserError for a class that is not there."""
    out = np.zeros(len(labelled.labels), bool)
    first = [names[0] for names in labelled.names]
    for name in held_out.classes if held_out else ():
        if name not in first:
            raise UserError(f"held_out.classes: {name!r} is no class's first name; see classes.json")
        rows = np.flatnonzero(labelled.labels == first.index(name))
        out[rows[-held_out.images_per_class :]] = True  # type: ignore[union-attr]
    return out
