"""A labelled grid of images for people."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LABEL_WIDTH, GAP, MIN_SIDE = 190, 2, 56


def labelled_grid(rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """One row per (label, uint8 images [n, H, W, C]); small images are enlarged by whole pixels."""
    side = rows[0][1].shape[1]
    scale = max(1, -(-MIN_SIDE // side))
    cell = side * scale + GAP
    width = LABEL_WIDTH + cell * max(len(images) for _, images in rows)
    canvas = Image.new("RGB", (width, cell * len(rows)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    for r, (label, images) in enumerate(rows):
        pen.text((6, r * cell + cell // 2), label, fill="black", font=font, anchor="lm")
        for i, image in enumerate(images):
            picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
            large = picture.convert("RGB").resize((side * scale,) * 2, Image.Resampling.NEAREST)
            canvas.paste(large, (LABEL_WIDTH + i * cell, r * cell))
    return canvas
