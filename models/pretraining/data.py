"""How the images of a domain are read, and the captions of those that have some."""

import gzip
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from dinv.errors import UserError
from dinv.images.resize import to_square
from models.pretraining.domain import IMAGE_SIZE, Domain, Source
from models.pretraining.mosaics import held_out_rows, read_mosaics


class Captioned(NamedTuple):
    """Images of all sources."""

    images: torch.Tensor  # float32 [N, C, 32, 32] in [-1, 1]
    kinds: torch.Tensor  # int64 [N]
    captions: list[list[str]]  # of each kind
    sources: torch.Tensor  # number of each image's source, int64 [N]

    def only(self, rows: torch.Tensor) -> "Captioned":
        """Some of the images."""
        return self._replace(images=self.images[rows], kinds=self.kinds[rows], sources=self.sources[rows])


def load_images(path: Path, domain: Domain) -> torch.Tensor:
    """The images to train on, float32 [N, C, 32, 32] in [-1, 1].

    Args:
        path: idx3 file (.gz; padded with black) or Parquet file with encoded images in column `image`
            (resized as dinv's data stage does), from `first_image` on; for a domain with sources, the folder
            that has them.
        domain: gives the number of channels.
    """
    if domain.sources:
        return load_captioned(path, domain).images
    images = _from_idx(path) if path.suffix == ".gz" else _from_parquet(path, domain)
    images = images[domain.first_image :]
    if not len(images):
        raise UserError(f"{path}: no image from number {domain.first_image} on; check --images and --domain")
    return _to_float(images)


def load_labels(path: Path, domain: Domain) -> torch.Tensor:
    """Labels of the images that `load_images` gives, int64 [N]: idx1 file, column `class`, or kinds."""
    if domain.sources:
        return load_captioned(path, domain).kinds
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            labels = np.frombuffer(file.read()[8:], np.uint8).astype(np.int64)
    else:
        names = pq.read_table(path, columns=["class"])["class"].to_numpy()
        labels = np.unique(names.astype(str), return_inverse=True)[1]
    return torch.from_numpy(labels[domain.first_image :].copy())


def load_captioned(root: Path, domain: Domain, unseen: bool = False) -> Captioned:
    """The images of all sources to train on, or those that training does not see.

    A class of a labelled source is a kind; a source whose captions name no class is one kind.
    """
    images, kinds, captions, sources = [], [], list[list[str]](), []
    for number, source in enumerate(domain.sources):
        pixels, own_kinds, own_captions = _read(root, source, domain, unseen)
        images.append(pixels)
        kinds.append(own_kinds + len(captions))
        captions += own_captions
        sources.append(torch.full_like(own_kinds, number))
    return Captioned(_to_float(torch.cat(images)), torch.cat(kinds), captions, torch.cat(sources))


def captions_of(names: list[str], templates: tuple[str, ...]) -> list[str]:
    """Every template with every name; half of them with the first, which is what people say."""
    drawn = [names[0]] * max(len(names) - 1, 1) + names[1:]
    return [template.format(name) for name in drawn for template in templates]


def _read(
    root: Path, source: Source, domain: Domain, unseen: bool
) -> tuple[torch.Tensor, torch.Tensor, list[list[str]]]:
    if source.path.endswith(".parquet"):
        file = source.unseen if unseen else source.path
        images = (
            _from_parquet(root / file, domain) if file else torch.empty(0, domain.channels, 32, 32).byte()
        )
        return images, torch.zeros(len(images), dtype=torch.int64), [list(source.captions)]
    mosaics = read_mosaics(root / source.path)
    chosen = held_out_rows(mosaics, source.held_out) == unseen
    present, kinds = np.unique(mosaics.labels, return_inverse=True)
    captions = [captions_of(mosaics.names[i], source.captions) for i in present]
    images = torch.from_numpy(mosaics.images[chosen]).permute(0, 3, 1, 2)
    return images, torch.from_numpy(kinds[chosen]), captions


def _to_float(images: torch.Tensor) -> torch.Tensor:
    return images.float().div_(127.5).sub_(1)


def _from_idx(path: Path) -> torch.Tensor:
    with gzip.open(path) as file:
        raw = file.read()
    images = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    return F.pad(images, (2, 2, 2, 2))


def _from_parquet(path: Path, domain: Domain) -> torch.Tensor:
    mode = "L" if domain.channels == 1 else "RGB"
    images = [
        to_square(Image.open(io.BytesIO(entry["bytes"].as_py())), IMAGE_SIZE, "center_crop", mode)
        for entry in pq.read_table(path, columns=["image"])["image"]
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
