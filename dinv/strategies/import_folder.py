"""Images that another program made: a GAN, another diffusion tool, a simulator; no diffusion model here.

A folder per class, or a table labels.csv as source `image_csv` reads, with a third column `source_id`.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from tqdm import tqdm

from dinv.errors import UserError
from dinv.images.export import file_name
from dinv.images.fingerprint import BITS, fingerprints, nearest_distance, read_fingerprints
from dinv.images.image_set import ImageSetReader
from dinv.images.resize import to_square
from dinv.section import did_you_mean
from dinv.sources.image_csv import TABLE, read_table
from dinv.sources.image_folder import SUFFIXES, read_picture
from dinv.strategies.base import Draw, Inputs, Material, StrategyParams
from dinv.strategies.retrieval import HELD_OUT, AsTheyAre

TASK = Path("data/real/train")  # the classifiers' own resolution, not the model's


class ImportFolderParams(StrategyParams):
    """`input` is the folder; `resize` is as data.resize.

    `max_duplicate_bits`: an image whose fingerprint differs in so few of 256 bits, or fewer, from that of a
    test or validation image is left out and counted; null: none is compared.
    """

    resize: Literal["pad", "center_crop", "squash"]
    max_duplicate_bits: Annotated[int, Field(ge=0, lt=BITS)] | None


class ImportFolder:
    """Every image of the folder once, at the task's resolution and mode; sorted by path."""

    Params = ImportFolderParams

    def __init__(self, params: ImportFolderParams, material: Material):
        self.params, self.folder, self.task = params, material.folder, ImageSetReader(TASK)
        if not self.folder.is_dir():
            raise UserError(f"import_folder: input = {self.folder.as_posix()!r}: no such folder")
        table = (self.folder / TABLE).is_file()
        listed = _listed_in_table(self.folder) if table else _listed_by_folder(self.folder)
        known = set(self.task.ids)
        self._draws = [self._draw(path, name, source, known) for path, name, source in sorted(listed)]
        if params.max_duplicate_bits is not None:
            self._draws = self._without_duplicates(params.max_duplicate_bits)
        if not self._draws:
            raise UserError(f"import_folder: input = {self.folder.as_posix()!r}: no image; put some there")
        found = Counter(draw.label for draw in self._draws)
        counts = ", ".join(f"{name} {found[k]}" for k, name in enumerate(self.task.class_names))
        tqdm.write(f"import_folder: {len(self._draws)} images of {self.folder.as_posix()} ({counts})")

    def __len__(self) -> int:
        return len(self._draws)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The given ones."""
        return [self._draws[i] for i in indices]

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """The images, read from their files; raises UserError for a broken one."""
        return {"images": torch.from_numpy(np.stack([self._read(draw.id) for draw in draws]))}

    def renderer(self) -> AsTheyAre:
        """Nothing is made."""
        return AsTheyAre()

    def previews(self) -> "list[tuple[str, ImportFolder]]":
        """The first of each class."""
        return [("imported", self)]

    def _draw(self, path: str, name: str, source: str | None, known: set[str]) -> Draw:
        names = self.task.class_names
        labels = [k for k, n in enumerate(names) if name in (n, file_name(n))]
        if not labels:
            raise UserError(
                f"{self.folder / path}: class {name!r} is not one of the task's"
                f"{did_you_mean(name, dict.fromkeys(names))}, which are {', '.join(names)}; rename it"
            )
        if source is not None and source not in known:
            raise UserError(
                f"{self.folder / path}: source_id {source!r} is no training image of {TASK}; correct it, or "
                "leave it empty"
            )
        return Draw(path, labels[0], source, {"unet_passes": 0})

    def _read(self, path: str) -> np.ndarray:
        picture = read_picture(self.folder / path)
        side, _, channels = self.task.shape
        try:
            return to_square(picture, side, self.params.resize, "L" if channels == 1 else "RGB")
        except UserError as error:
            remedy = "set resize of this block to center_crop or squash"
            raise UserError(
                f"{self.folder / path}: larger than the task's {side} pixels; {remedy}"
            ) from error

    def _without_duplicates(self, max_bits: int) -> list[Draw]:
        held_out = read_fingerprints(HELD_OUT)
        bits = [nearest_distance(fingerprints(self._read(d.id)[None]), held_out)[0] for d in self._draws]
        kept = [draw for draw, distance in zip(self._draws, bits, strict=True) if distance > max_bits]
        tqdm.write(
            f"import_folder: {len(bits) - len(kept)} of {len(bits)} images are near-duplicates of test or "
            "validation images and left out"
        )
        return kept


def _listed_in_table(folder: Path) -> list[tuple[str, str, str | None]]:
    """(path, class, source id) of every line of the table."""
    rows = read_table(folder / TABLE)
    return [(row["path"], row["label"], row.get("source_id") or None) for row in rows]


def _listed_by_folder(folder: Path) -> list[tuple[str, str, str | None]]:
    """The same of every file below a folder that is named as a class."""
    found: list[tuple[str, str, str | None]] = []
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        if not file.is_file() or any(part.startswith(".") for part in parts):
            continue
        path = "/".join(parts)
        if file.suffix.lower() not in SUFFIXES:
            kinds = " ".join(sorted(SUFFIXES))
            raise UserError(f"{file}: not an image file ({kinds}); move it out of the folder")
        if len(parts) == 1:
            raise UserError(f"{file}: lies in no class's folder; move it into one, or write {TABLE}")
        found.append((path, parts[0], None))
    return found
