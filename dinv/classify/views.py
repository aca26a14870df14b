"""Random views of images for networks that stay frozen: each is read once, so that training sees many."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from dinv.classify.base import LabelledImages
from dinv.classify.clip_based import ClipNetwork, image_features
from dinv.classify.cross_validation import pixel_digests
from dinv.rng import derive_seed
from dinv.section import PositiveInt, Section

_AT_ONCE = 1000  # images whose views are in memory


class ViewParams(Section):
    """How many views each image has, how small a crop may be, and whether it may be mirrored."""

    num_views: PositiveInt
    min_crop_scale: Annotated[float, Field(gt=0, le=1)]
    horizontal_flip: bool


def view_features(
    images: torch.Tensor, network: ClipNetwork, params: ViewParams, seed: int, device: torch.device
) -> torch.Tensor:
    """Features of length 1 of every view, float32 [N, num_views, D], of uint8 [N, C, H, W].

    Views are torchvision's RandomResizedCrop and a flip, drawn by seed, view and pixels: equal images have
    equal views, wherever they stand.
    """

    def of_view(view: int, some: torch.Tensor) -> torch.Tensor:
        return image_features(view_of(some, params, seed, view), network, device)

    slabs = images.split(_AT_ONCE)
    return torch.stack(
        [torch.cat([of_view(view, some) for some in slabs]) for view in range(params.num_views)], 1
    )


def viewed(
    sources: Sequence[LabelledImages],
    network: ClipNetwork,
    params: ViewParams,
    seed: int,
    device: torch.device,
) -> list[LabelledImages]:
    """Image sets with features of views, [N, num_views, D], in place of images."""
    return [replace(s, images=view_features(s.images, network, params, seed, device)) for s in sources]


def view_of(images: torch.Tensor, params: ViewParams, seed: int, view: int) -> torch.Tensor:
    """One view of each image, uint8 [N, C, H, W]."""
    size = list(images.shape[2:])
    scale, cubic = (params.min_crop_scale, 1.0), InterpolationMode.BICUBIC
    steps: list[torch.nn.Module] = [v2.RandomResizedCrop(size, scale=scale, interpolation=cubic)]
    if params.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    transform = v2.Compose(steps)
    seen = []
    with torch.random.fork_rng(devices=[]):
        for image, key in zip(images.cpu(), pixel_digests(images), strict=True):
            torch.manual_seed(derive_seed(seed, "view", key, view))
            seen.append(transform(image))
    return torch.stack(seen)
