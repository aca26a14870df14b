"""From a source to the labelled task's three image sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dinv.config import DataParams
from dinv.data.image_set import ImageSet
from dinv.data.resize import to_square
from dinv.data.sources.base import RawImages
from dinv.data.sources.registry import SOURCES
from dinv.data.split import split_train_val
from dinv.errors import UserError
from dinv.rng import generator


@dataclass(frozen=True)
class Task:
    """Disjoint image sets: learned from, tuned on, and measured on."""

    train: ImageSet
    val: ImageSet
    test: ImageSet


def load_task(params: DataParams) -> Task:
    """Read, split and resize the images that `params` names; raises UserError."""
    source = SOURCES[params.source](Path(params.root), params.seed)
    in_pool = params.num_val_per_class if source.val is None else 0
    train_rows, val_rows = split_train_val(
        source.train.labels, source.class_names, params.num_per_class, in_pool, params.seed
    )
    val = source.train.take(val_rows) if source.val is None else source.val
    num_test = params.num_test if params.num_test is not None else len(source.test.ids)
    if num_test > len(source.test.ids):
        raise UserError(
            f"data.num_test = {num_test}: {params.root} has {len(source.test.ids)} test images; "
            "lower it or set null for all"
        )
    order = torch.randperm(len(source.test.ids), generator=generator(params.seed, "test"))
    test = source.test.take(sorted(order[:num_test].tolist()))
    sets = {"train": source.train.take(train_rows), "val": val, "test": test}
    return Task(**{k: _read(raw, source.class_names, params, k) for k, raw in sets.items()})


def _read(raw: RawImages, class_names: list[str], params: DataParams, split: str) -> ImageSet:
    images = []
    for i in tqdm(range(len(raw.ids)), split, unit="image"):
        try:
            images.append(to_square(raw.read(i), params.resolution, params.resize, params.mode))
        except UserError as error:
            place = f"{params.root}: {raw.ids[i]}: " if raw.ids[i] not in str(error) else ""
            raise UserError(f"{place}{error}") from error
    shape = (0, params.resolution, params.resolution, 1 if params.mode == "L" else 3)
    array = np.stack(images) if images else np.zeros(shape, np.uint8)
    return ImageSet(array, raw.labels, raw.ids, class_names)
