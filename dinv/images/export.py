"""Write an image set as a folder per class, for programs that read no Parquet."""

import re
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dinv.errors import UserError
from dinv.images.image_set import ImageSetReader


def export_image_folder(source: Path, target: Path) -> int:
    """Write target/<class>/<id>.png for every image; return how many there are.

    Characters other than letters, digits, '.', '_' and '-' become '_' in names, as in `T-shirt_top`.

    Raises:
        UserError: the target exists, the source is damaged, or two names become the same.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or give another folder")
    images = ImageSetReader(source)
    names = [file_name(name) for name in images.class_names]
    _require_distinct(names, images.class_names, source)
    for name in names:
        (target / name).mkdir(parents=True)
    for row in tqdm(range(len(images)), "export", unit="image", mininterval=1):
        image = images.take([row])
        path = target / names[int(image.labels[0])] / f"{file_name(image.ids[0])}.png"
        if path.exists():
            raise UserError(f"{source}: image {image.ids[0]!r} and another would both be {path}; rename one")
        pixels = image.images[0]
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path)
    return len(images)


def file_name(text: str) -> str:
    """The text as a name of a file or folder: `T-shirt/top` is `T-shirt_top`."""
    return re.sub(r"[^\w.-]", "_", text)


def _require_distinct(names: list[str], originals: list[str], source: Path) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(
                f"{source}: classes {originals[names.index(name)]!r} and {originals[i]!r} would share the "
                f"folder {name!r}; rename one"
            )
