"""Read every picture of a source once: sizes, colour, and which are broken."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from dinv.errors import UserError
from dinv.images.resize import to_square
from dinv.intake.place import require_only_images
from dinv.sources.base import RawImages, RawSplits
from dinv.sources.registry import SOURCES

GREY_LEVELS = 10  # of 255: channels that differ by no more, anywhere, are grey
THUMBNAIL = 64


@dataclass(frozen=True)
class Pictures:
    """What reading the pictures of one split found, by row.

    Attributes:
        raw: the split.
        sizes: (width, height) in pixels, after EXIF rotation; (0, 0) for a broken one.
        is_grey: bool [N].
        broken: row -> why it cannot be read.
    """

    raw: RawImages
    sizes: list[tuple[int, int]]
    is_grey: NDArray[np.bool_]
    broken: dict[int, str]

    @property
    def readable(self) -> list[int]:
        """Rows that are not broken."""
        return [row for row in range(len(self.raw.ids)) if row not in self.broken]


@dataclass(frozen=True)
class Found:
    """A source and all its pictures; splits in the order train, val, test, where val may be missing."""

    source: str
    root: str
    class_names: list[str]
    splits: dict[str, Pictures]

    def counts(self, split: str) -> list[int]:
        """Images of each class, broken ones too."""
        return np.bincount(self.splits[split].raw.labels, minlength=len(self.class_names)).tolist()

    @property
    def sides(self) -> NDArray[np.int64]:
        """(shorter, longer) side in pixels of all that can be read, int64 [N, 2]."""
        found = [sorted(p.sizes[row]) for p in self.splits.values() for row in p.readable]
        return np.asarray(found, np.int64).reshape(-1, 2)

    @property
    def share_in_colour(self) -> float:
        """Of all that can be read."""
        grey = [bool(p.is_grey[row]) for p in self.splits.values() for row in p.readable]
        return 1 - float(np.mean(grey))

    @property
    def broken(self) -> list[str]:
        """One line for each picture that cannot be read."""
        return [reason for pictures in self.splits.values() for reason in pictures.broken.values()]


def look(source: str, root: Path, seed: int) -> Found:
    """List and read everything; raises UserError where the source cannot even be listed.

    A source that brings no test split has a fifth of every class set aside for it, chosen by `seed`.
    """
    if source == "image_folder" and root.is_dir():
        require_only_images(root)
    splits: RawSplits = SOURCES[source](root, seed)
    found = {"train": splits.train, "val": splits.val, "test": splits.test}
    pictures = {name: read_all(raw, name) for name, raw in found.items() if raw is not None}
    if not any(p.readable for p in pictures.values()):
        raise UserError(f"{root}: no picture can be read; the first: {pictures['train'].broken[0]}")
    return Found(source, root.as_posix(), splits.class_names, pictures)


def read_all(raw: RawImages, name: str) -> Pictures:
    """Decode every picture of a split."""
    sizes, grey, broken = [], [], {}
    for row in tqdm(range(len(raw.ids)), f"read {name}", unit="image", mininterval=1, leave=False):
        try:
            picture = ImageOps.exif_transpose(raw.read(row))
            sizes.append(picture.size)
            grey.append(is_grey(picture))
        except UserError as error:
            sizes.append((0, 0))
            grey.append(False)
            broken[row] = str(error)
    return Pictures(raw, sizes, np.asarray(grey, bool), broken)


def is_grey(picture: Image.Image) -> bool:
    """Whether no pixel of a thumbnail has channels that differ by more than 10 of 255."""
    if picture.mode in ("1", "L", "LA"):
        return True
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return int(np.ptp(np.asarray(small, np.int16), axis=2).max()) <= GREY_LEVELS


def squares(pictures: Pictures, rows: Sequence[int], side: int, mode: str) -> NDArray[np.uint8]:
    """Some rows at a side in pixels, uint8 [N, side, side, C]; cropped to the centre."""
    return np.stack([to_square(pictures.raw.read(row), side, "center_crop", mode) for row in rows])
