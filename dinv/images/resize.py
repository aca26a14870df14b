"""One documented way from any picture to a square uint8 image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dinv.errors import UserError


def to_square(picture: Image.Image, resolution: int, policy: str, mode: str) -> NDArray[np.uint8]:
    """Return uint8 [resolution, resolution, C].

    Args:
        picture: any PIL image; EXIF rotation is applied, then it is converted to `mode`.
        resolution: side of the result in pixels.
        policy: `center_crop` scales the shorter side (Pillow's antialiased bicubic) and crops the
            longer; `squash` scales both sides independently, as the authors do for array data
            sets; `pad` does not scale and centres the picture on black.
        mode: `L` (C = 1) or `RGB` (C = 3).

    Raises:
        UserError: with `pad`, the picture is larger than the resolution.
    """
    picture = ImageOps.exif_transpose(picture).convert(mode)
    side = (resolution, resolution)
    if policy == "center_crop":
        picture = ImageOps.fit(picture, side, Image.Resampling.BICUBIC)
    elif policy == "squash":
        picture = picture.resize(side, Image.Resampling.BICUBIC)
    else:
        picture = _pad(picture, resolution)
    return np.asarray(picture, np.uint8).reshape(resolution, resolution, -1)


def to_squares(
    picture: Image.Image, resolution: int, policy: str, mode: str, sides: Sequence[int]
) -> list[NDArray[np.uint8]]:
    """The same picture at several sides, each straight from the original: uint8 [side, side, C] each.

    `pad` does not scale, so its square of the given resolution is what is scaled to other sides.

    Raises:
        UserError: with `pad`, the picture is larger than the resolution.
    """
    if policy != "pad":
        return [to_square(picture, side, policy, mode) for side in sides]
    padded = to_square(picture, resolution, policy, mode)
    return [convert_batch(padded[None], side, padded.shape[2])[0] for side in sides]


def convert_batch(images: NDArray[np.uint8], resolution: int, num_channels: int) -> NDArray[np.uint8]:
    """Square uint8 images [N, H, H, C] to another side (antialiased bicubic) and to 1 or 3 channels."""
    shape = (len(images), resolution, resolution, num_channels)
    if images.shape == shape:
        return images
    mode = "L" if num_channels == 1 else "RGB"
    pictures = [Image.fromarray(i.squeeze(2) if i.shape[2] == 1 else i) for i in images]
    scaled = [p.convert(mode).resize((resolution,) * 2, Image.Resampling.BICUBIC) for p in pictures]
    return np.stack([np.asarray(p, np.uint8) for p in scaled]).reshape(shape)


def _pad(picture: Image.Image, resolution: int) -> Image.Image:
    width, height = picture.size
    if max(width, height) > resolution:
        raise UserError(
            f"image of {width}x{height} is larger than data.resolution {resolution}; raise it or "
            "set data.resize to center_crop"
        )
    canvas = Image.new(picture.mode, (resolution, resolution))
    canvas.paste(picture, ((resolution - width) // 2, (resolution - height) // 2))
    return canvas
