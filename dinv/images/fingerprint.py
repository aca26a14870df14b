"""Fingerprints of images that survive scaling, compression and small changes of brightness.

256 signs of low frequencies of the cosine transform ("perceptual hash"). No image can be made of them: that
something depends on fingerprints of test images does not let it learn from these.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinv.errors import UserError
from dinv.files import atomic_write
from dinv.images.resize import convert_batch

SIDE, BITS = 32, 256
Fingerprints = NDArray[np.uint8]


def fingerprints(images: NDArray[np.uint8]) -> Fingerprints:
    """Square uint8 images [N, H, H, C] -> uint8 [N, 32], eight bits in each."""
    grey = convert_batch(images, SIDE, 1)[..., 0].astype(np.float64)
    k, x = np.arange(1, 17)[:, None], np.arange(SIDE)[None]
    cosines = np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))  # without the mean, so brightness does not count
    coefficients = np.einsum("kx,nxy,ly->nkl", cosines, grey, cosines).reshape(len(images), -1)
    return np.packbits(coefficients > np.median(coefficients, axis=1, keepdims=True), axis=1)


def nearest_distance(found: Fingerprints, known: Fingerprints) -> NDArray[np.int64]:
    """In how many bits each of N fingerprints differs from the most similar of M known ones, int64 [N]."""
    if not len(known):
        return np.full(len(found), BITS)
    chunks = [known[i : i + 1000] for i in range(0, len(known), 1000)]
    nearest = [np.bitwise_count(one ^ chunk).sum(1).min() for one in found for chunk in chunks]
    return np.asarray(nearest, np.int64).reshape(len(found), len(chunks)).min(1)


def write_fingerprints(sets: Iterable[NDArray[np.uint8]], path: Path) -> None:
    """Write those of all images, a line of hexadecimal digits each, sorted: it does not tell which image."""
    lines = sorted(row.tobytes().hex() for images in sets for row in fingerprints(images))
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))


def read_fingerprints(path: Path) -> Fingerprints:
    """Read a file of fingerprints, uint8 [M, 32]; raises UserError when it is missing or damaged."""
    try:
        return _parse(path.read_text().split())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or damaged; run dvc repro download") from error


def _parse(lines: Sequence[str]) -> Fingerprints:
    rows = [np.frombuffer(bytes.fromhex(line), np.uint8) for line in lines]
    if any(len(row) != BITS // 8 for row in rows):
        raise ValueError("not fingerprints")
    return np.stack(rows) if rows else np.zeros((0, BITS // 8), np.uint8)
