"""Read every picture of a task once: its pixels as the model sees them, and what can be said of it alone."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from dinv.errors import UserError
from dinv.images.fingerprint import Fingerprints, fingerprints
from dinv.images.image_set import ROWS_PER_GROUP, batches
from dinv.images.mapped import map_pixels
from dinv.images.resize import to_squares
from dinv.intake.look import is_grey
from dinv.sources.task import Split, Task

LOW_CONTRAST = 4.0  # levels of 255: a picture with more is not of a single colour, however even it is


@dataclass(frozen=True)
class Survey:
    """All N pictures of a task: those of train, then val, then test, each in order of their ids.

    Attributes:
        splits, ids: N names each.
        labels: int64 [N].
        class_names: one per class.
        pixels: uint8 [N, C, side, side], mapped from a file; black where a picture is broken.
        shorter: shorter side of the original in pixels, int64 [N].
        is_grey: whether the original is, bool [N].
        digests: of the original's pixels.
        prints: uint8 [N, 32], see dinv.images.fingerprint.
        contrast: largest standard deviation of a channel, in levels of 255, float64 [N].
        evenness: see there, of originals whose contrast is below LOW_CONTRAST; 0 of others, float64 [N].
        sharpness: variance of the Laplacian over that of the pixels, float64 [N].
        broken: row -> why it cannot be read.
        read: row -> the original.
    """

    splits: list[str]
    ids: list[str]
    labels: NDArray[np.int64]
    class_names: list[str]
    pixels: NDArray[np.uint8]
    shorter: NDArray[np.int64]
    is_grey: NDArray[np.bool_]
    digests: list[str]
    prints: Fingerprints
    contrast: NDArray[np.float64]
    evenness: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    broken: dict[int, str]
    read: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def readable(self) -> NDArray[np.int64]:
        """Rows that are not broken."""
        return np.asarray([row for row in range(len(self)) if row not in self.broken], np.int64)

    def class_of(self, row: int) -> str:
        """Name of a picture's class."""
        return self.class_names[self.labels[row]]


def survey(task: Task, side: int) -> Survey:
    """Read the whole task; pixels are of `side`, which is the model's.

    Raises:
        UserError: `data.resize` is pad, and a picture is too large.
    """
    splits = {"train": task.train, "val": task.val, "test": task.test}
    places = [(name, row) for name, split in splits.items() for row in np.argsort(split.raw.ids).tolist()]

    def read(row: int) -> Image.Image:
        name, place = places[row]
        return splits[name].raw.read(place)

    facts = _Facts()
    first = task.train
    channels = 1 if first.params.mode == "L" else 3
    pieces = facts.pieces(len(places), read, lambda picture: _square(picture, first, side), (side, channels))
    pixels = map_pixels(pieces, (len(places), channels, side, side))
    return Survey(
        splits=[name for name, _ in places],
        ids=[splits[name].raw.ids[row] for name, row in places],
        labels=np.asarray([splits[name].raw.labels[row] for name, row in places], np.int64),
        class_names=first.class_names,
        pixels=pixels,
        shorter=np.asarray(facts.shorter, np.int64),
        is_grey=np.asarray(facts.grey, bool),
        digests=facts.digests,
        prints=np.concatenate(facts.prints),
        contrast=np.concatenate(facts.contrast),
        evenness=np.asarray(facts.evenness, np.float64),
        sharpness=np.concatenate(facts.sharpness),
        broken=facts.broken,
        read=read,
    )


def _square(picture: Image.Image, split: Split, side: int) -> NDArray[np.uint8]:
    p = split.params
    return to_squares(picture, p.resolution, p.resize, p.mode, [side])[0]


@dataclass
class _Facts:
    """What is noted of pictures as they are read."""

    shorter: list[int] = field(default_factory=list)
    grey: list[bool] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    prints: list[Fingerprints] = field(default_factory=list)
    contrast: list[NDArray[np.float64]] = field(default_factory=list)
    evenness: list[float] = field(default_factory=list)
    sharpness: list[NDArray[np.float64]] = field(default_factory=list)
    broken: dict[int, str] = field(default_factory=dict)

    def pieces(
        self,
        n: int,
        read: Callable[[int], Image.Image],
        square: Callable[[Image.Image], NDArray[np.uint8]],
        shape: tuple[int, int],
    ) -> Iterator[NDArray[np.uint8]]:
        """Squares, uint8 [b, side, side, C], a row group at a time."""
        side, channels = shape
        with tqdm(total=n, desc="read", unit="image", mininterval=1, leave=False) as bar:
            for rows in batches(n, ROWS_PER_GROUP):
                piece = np.zeros((rows.stop - rows.start, side, side, channels), np.uint8)
                for place, row in enumerate(range(rows.start, rows.stop)):
                    picture = self._read(row, read)
                    if picture is not None:
                        piece[place] = square(picture)
                    low = picture is not None and contrast(piece[place][None])[0] < LOW_CONTRAST
                    self.evenness.append(evenness(picture) if picture is not None and low else 0.0)
                self.prints.append(fingerprints(piece))
                self.contrast.append(contrast(piece))
                self.sharpness.append(sharpness(piece))
                bar.update(len(piece))
                yield piece

    def _read(self, row: int, read: Callable[[int], Image.Image]) -> Image.Image | None:
        try:
            picture = ImageOps.exif_transpose(read(row))
        except UserError as error:
            self.broken[row] = str(error)
            self.shorter.append(0)
            self.grey.append(False)
            self.digests.append(f"broken {row}")
            return None
        self.shorter.append(min(picture.size))
        self.grey.append(is_grey(picture))
        self.digests.append(_digest(picture))
        return picture


def _digest(picture: Image.Image) -> str:
    """Of size and colours, in hex: a copy in another lossless format has the same."""
    sha256 = hashlib.sha256(repr(picture.size).encode())
    sha256.update(picture.convert("RGB").tobytes())
    return sha256.hexdigest()


def contrast(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Standard deviation of pixels [B, H, W, C], of the channel where it is largest; in levels of 255."""
    deviations: NDArray[np.float64] = images.std((1, 2), dtype=np.float64)
    return deviations.max(1)


def evenness(picture: Image.Image) -> float:
    """Share of adjacent pixels that are equal in all channels: of those side by side, or one above the other,
    whichever is smaller; 1 for a picture of one pixel.

    Lossy compression of a single colour leaves ramps and large equal areas; a sensor's noise leaves neither.
    """
    pixels = np.asarray(picture.convert("RGB"))
    pairs = ((pixels[:, 1:], pixels[:, :-1]), (pixels[1:], pixels[:-1]))
    return min(float((a == b).all(2).mean()) if a.size else 1.0 for a, b in pairs)


def sharpness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) over that of grey pixels; 0 without contrast.

    Divided by the variance of the pixels, it does not change with contrast. White noise has 20.
    """
    grey = images.mean(3, dtype=np.float64)
    inside = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    spread = inside.var((1, 2))
    laplacian: NDArray[np.float64] = (4 * inside - around).var((1, 2))
    return np.divide(laplacian, spread, out=np.zeros_like(spread), where=spread > 1e-9)
