"""The user's own images: a folder per class.

Either `root/train/<class>/...` and `root/test/<class>/...` (with `root/val` optional), or
`root/<class>/...`, from which a fifth of every class is set aside for test.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dinv.errors import UserError
from dinv.images.split import split_off_test
from dinv.sources.base import RawImages, RawSplits

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


def load(root: Path, seed: int) -> RawSplits:
    """List the images; pixels are read later, one at a time."""
    if not root.is_dir():
        raise UserError(f"data.root = {str(root)!r}: no such folder; put one folder per class there")
    if (root / "train").is_dir():
        class_names = _class_names(root / "train")
        if not (root / "test").is_dir():
            raise UserError(f"{root}: has train/ but no test/; add it, or drop the train/ level")
        val = _split(root, "val", class_names) if (root / "val").is_dir() else None
        test = _split(root, "test", class_names)
        return RawSplits(class_names, _split(root, "train", class_names), val, test)
    class_names = _class_names(root)
    pool = _split(root, "", class_names)
    rest, test_rows = split_off_test(pool.labels, pool.ids, class_names, seed)
    return RawSplits(class_names, pool.take(rest), None, pool.take(test_rows))


def _class_names(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{folder}: found {len(names)} class folders; classification needs two")
    return names


def _split(root: Path, split: str, class_names: list[str]) -> RawImages:
    folder = root / split
    unknown = set(_class_names(folder)) - set(class_names)
    if unknown:
        raise UserError(f"{folder}: class {min(unknown)!r} is not in train/; add it or remove this")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = _images(folder / name)
        paths += found
        labels += [label] * len(found)
    ids = [path.relative_to(root).as_posix() for path in paths]
    return RawImages(ids, np.asarray(labels, np.int64), lambda i: read_picture(paths[i]))


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    other = [p for p in files if p.suffix.lower() not in SUFFIXES]
    if other:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"{other[0]}: not an image file ({kinds}); move it out of the class folder")
    if not files:
        raise UserError(f"{folder}: no images; add some or remove the class")
    return files


def read_picture(path: Path, content: bytes | None = None) -> Image.Image:
    """Decode one still picture of 8 bits per channel; raises UserError for anything else.

    Args:
        path: its file, or where its bytes come from.
        content: its bytes, where it has no file of its own.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as picture:
            frames = getattr(picture, "n_frames", 1)
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).replace(str(path), "").split())
        reason = "unknown format" if "BytesIO" in reason else reason
        raise UserError(f"{path}: broken image ({reason}); repair or remove it") from error
    if frames > 1:
        raise UserError(f"{path}: has {frames} frames; save the one you mean as a still picture")
    if picture.mode not in (
        "1",
        "L",
        "LA",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "CMYK",
        "YCbCr",
        "LAB",
        "HSV",
    ):
        raise UserError(f"{path}: pixels of mode {picture.mode}, not 8 bits; convert it to 8 bits")
    return picture
