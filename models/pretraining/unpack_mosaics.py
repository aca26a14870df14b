r"""Write mosaics as one PNG per image in one folder per class, as `data.source=image_folder` reads them.

    python -m models.pretraining.unpack_mosaics --images tiny-imagenet-32/target_train --output photos/train
    python -m models.pretraining.unpack_mosaics --images tiny-imagenet-32/target_test --output photos/test

With --held-out only the images that training leaves out, half of each class as train/, half as test/:

    python -m models.pretraining.unpack_mosaics --images tiny-imagenet-32/pretrain --output photos_seen \
        --held-out models/domains/photos.yaml
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinv.errors import UserError
from models.pretraining.domain import HeldOut, load_domain
from models.pretraining.mosaics import Labelled, held_out_rows, read_mosaics


def held_out_of(domain: Path) -> HeldOut:
    """What a domain's source of mosaics leaves out; raises UserError if it leaves out nothing."""
    for source in load_domain(domain).sources:
        if source.held_out:
            return source.held_out
    raise UserError(f"--held-out {domain}: none of its sources has held_out; see models/domains/photos.yaml")


def halves(rows: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first and the second half of the rows of each class."""
    by_class = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    first = np.concatenate([r[: len(r) // 2] for r in by_class])
    return first, np.setdiff1d(rows, first)


def write(mosaics: Labelled, rows: NDArray[np.int64], folder: Path) -> None:
    """`folder/<first name of the class>/<row>.png`."""
    for row in rows:
        path = folder / mosaics.names[mosaics.labels[row]][0] / f"{row:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mosaics.images[row]).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of mosaics")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--held-out", type=Path, metavar="DOMAIN", help="only what this domain leaves out")
    args = parser.parse_args()
    if args.output.exists():
        raise UserError(f"--output {args.output}: exists; remove it or give another name")
    mosaics = read_mosaics(args.images)
    if not args.held_out:
        write(mosaics, np.arange(len(mosaics.labels)), args.output)
        return
    rows = np.flatnonzero(held_out_rows(mosaics, held_out_of(args.held_out)))
    for split, chosen in zip(("train", "test"), halves(rows, mosaics.labels), strict=True):
        write(mosaics, chosen, args.output / split)


if __name__ == "__main__":
    main()
