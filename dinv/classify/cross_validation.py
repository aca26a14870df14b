"""Settings of a learner chosen by its own training images: some are held out in turn, test images never."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from dinv.classify.base import LabelledImages, TrainingSet
from dinv.files import bytes_digest

NUM_FOLDS = 5


@dataclass(frozen=True)
class Split:
    """One division.

    Attributes:
        kept: rows of each source to learn from.
        scored: rows of the first source to measure on: real images where the arm has any.
    """

    kept: Sequence[torch.Tensor]
    scored: torch.Tensor


def splits(data: TrainingSet) -> list[Split]:
    """At most 5 stratified divisions, the same in whatever order images stand.

    A real image and what was generated from it are held out together, and nothing is learned from images
    that it was mixed into as a partner. A class with one such group of images is always learned from and
    never measured on. Divisions that leave no generated image to learn from are not made.
    """
    groups = [group_keys(source, data.real) for source in data.sources]
    labels = data.sources[0].targets.argmax(1).tolist()
    fold_of = _folds(groups[0], labels)
    folds = [torch.tensor([fold_of.get(group, -1) for group in of_source]) for of_source in groups]
    mixed_in = [_partner_folds(source, data.real, fold_of) for source in data.sources]
    found = [
        Split(
            [
                torch.nonzero((own != k) & (other != k)).flatten()
                for own, other in zip(folds, mixed_in, strict=True)
            ],
            torch.nonzero(folds[0] == k).flatten(),
        )
        for k in sorted(set(fold_of.values()))
    ]
    return [split for split in found if all(len(rows) for rows in split.kept)]


def group_keys(source: LabelledImages, real: LabelledImages) -> list[str]:
    """For each image the digest of the real image that it was generated from, or its own if it has none."""
    own = pixel_digests(source.images)
    if source.origins is None:
        return list(own)
    of_real = pixel_digests(real.images)
    return [of_real[origin] if origin >= 0 else own[i] for i, origin in enumerate(source.origins.tolist())]


def _partner_folds(source: LabelledImages, real: LabelledImages, fold_of: Mapping[str, int]) -> torch.Tensor:
    """Fold of the real image that was mixed in, int64 [N]; -1: none, or never held out."""
    if source.partners is None:
        return torch.full((len(source),), -1)
    of_real = pixel_digests(real.images)
    return torch.tensor(
        [fold_of.get(of_real[row], -1) if row >= 0 else -1 for row in source.partners.tolist()]
    )


def _folds(groups: Sequence[str], labels: Sequence[int]) -> dict[str, int]:
    """Group -> fold, for those that are ever held out."""
    label_of: dict[str, int] = {}
    for group, label in sorted(zip(groups, labels, strict=True)):
        label_of.setdefault(group, label)
    found: dict[str, int] = {}
    for label in sorted(set(label_of.values())):
        members = sorted(group for group, own in label_of.items() if own == label)
        if len(members) > 1:
            found |= {group: i % NUM_FOLDS for i, group in enumerate(members)}
    return found


def kept_images(data: TrainingSet, split: Split) -> TrainingSet:
    """What is learned from in a division; origins are rows of the real images as before, -1 if held out."""
    sources = [_of_rows(source, rows) for source, rows in zip(data.sources, split.kept, strict=True)]
    if not data.mixes:
        return TrainingSet(sources, data.real, data.class_names)
    new_row = torch.full((len(data.sources[0]),), -1)
    new_row[split.kept[0]] = torch.arange(len(split.kept[0]))
    made = replace(
        sources[1], origins=_moved(sources[1].origins, new_row), partners=_moved(sources[1].partners, new_row)
    )
    return TrainingSet([sources[0], made], sources[0], data.class_names)


def _of_rows(source: LabelledImages, rows: torch.Tensor) -> LabelledImages:
    origins, partners = (None if x is None else x[rows] for x in (source.origins, source.partners))
    return LabelledImages(source.images[rows], source.targets[rows], origins, partners)


def _moved(rows: torch.Tensor | None, new_row: torch.Tensor) -> torch.Tensor | None:
    """Rows of the real images as they are numbered now, -1: none."""
    return None if rows is None else torch.where(rows >= 0, new_row[rows.clamp(min=0)], -1)


def scores(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Right answers and the negative sum of cross-entropies, of logits [..., N, M]; each has shape [...].

    Of settings with as many right answers the likelier one is taken.
    """
    log_p = F.log_softmax(logits.double(), -1)
    right = (logits.argmax(-1) == labels).sum(-1)
    return right, log_p.gather(-1, labels.expand(log_p.shape[:-1])[..., None])[..., 0].sum(-1)


def pixel_digests(images: torch.Tensor) -> Sequence[str]:
    """Of each image of uint8 [N, C, H, W]."""
    return [bytes_digest(np.ascontiguousarray(image.cpu().numpy()).tobytes()) for image in images]
