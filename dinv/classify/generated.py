"""Image sets as a learner sees them; of generated images those that are kept, with the labels that they are
given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.base import Classifier, LabelledImages, LearnerParams
from dinv.classify.confidence import (
    class_confidence,
    confident_rows,
    label_confidence,
    quantile_rows,
    soft_targets,
)
from dinv.images.mapped import MappedImageSet
from dinv.images.reader import ImageSetReader

Teachers = Callable[[], Sequence[Classifier]]


def prepared(
    made: ImageSetReader,
    rows: Sequence[int],
    params: LearnerParams,
    teachers: Teachers,
    device: torch.device,
) -> MappedImageSet:
    """The given images, less those that the filters leave out, with a teacher's soft labels if asked for.

    `teachers` makes classifiers of the real images; it is called only where they are needed.

    Raises:
        UserError: a filter leaves a class without images.
    """
    images = made.mapped(rows)
    if not params.asks_a_teacher:
        return images
    probabilities = class_confidence(teachers(), images.tensor(), device)
    kept = kept_rows(probabilities, images, params)
    if len(kept) < len(images):
        print(f"{len(kept)} of {len(images)} generated images are kept")
        images, probabilities = made.mapped([rows[i] for i in kept.tolist()]), probabilities[kept]
    if params.soft_labels == "none":
        return images
    hard = class_probabilities(images)
    soft = soft_targets(hard, probabilities, params.teacher_weight, params.teacher_temperature)
    return replace(images, probabilities=soft)


def kept_rows(
    probabilities: NDArray[np.float32], images: MappedImageSet, params: LearnerParams
) -> NDArray[np.int64]:
    """Rows that all filters keep: quantiles are those of the images that `min_confidence` keeps."""
    confidence = label_confidence(probabilities, images.labels)
    kept = confident_rows(confidence, images.labels, images.class_names, params.min_confidence)
    low, high = params.min_confidence_quantile, params.max_confidence_quantile
    return kept[quantile_rows(confidence[kept], images.labels[kept], low, high)]


def class_probabilities(images: MappedImageSet) -> NDArray[np.float32]:
    """float32 [N, M]: as stored, or 1 for the label."""
    if images.probabilities is not None:
        return images.probabilities
    return np.eye(len(images.class_names), dtype=np.float32)[images.labels]


def labelled(
    images: MappedImageSet, row_of: Mapping[str, int] | None, device: torch.device
) -> LabelledImages:
    """An image set as a learner sees it; `row_of` tells rows of real images, None: these are real."""
    targets = torch.from_numpy(class_probabilities(images))
    pixels = placed(images.tensor(), device)
    if row_of is None:
        return LabelledImages(pixels, targets)
    return LabelledImages(pixels, targets, *real_rows(images.provenance, len(images), row_of))


def real_rows(
    provenance: Mapping[str, Sequence[Any]], num_images: int, row_of: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the real images that each was generated from, and that were mixed with those, -1: none."""
    names = (provenance.get(column, [None] * num_images) for column in ("source_id", "partner_id"))
    origins, partners = (torch.tensor([row_of.get(i, -1) for i in of_column]) for of_column in names)
    return origins, partners


def placed(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on a GPU if a quarter of its free memory holds them, else where they are."""
    if device.type != "cuda" or images.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
        return images
    return images.to(device)
