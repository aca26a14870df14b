"""Pictures inside the page, as data URIs, and which of them to show."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from dinv.classify.arms import REAL
from dinv.classify.store import load_classifiers
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.features.worker import load_features
from dinv.images.image_set import ImageSetReader
from dinv.metrics.image_sets import REAL as REAL_SET
from dinv.metrics.image_sets import choose
from dinv.report.files import Files
from dinv.rng import derive_seed

MAX_SIDE = 96  # pixels of a small picture
MAX_GRID_BYTES = 400_000  # a larger grid is made smaller
PER_CLASS, NUM_CLASSES = 2, 10
MAX_JUDGED = 2000  # generated images that classifiers are asked about
NUM_DOUBTED, NUM_SURE, NUM_NEAREST = 24, 12, 12
CLASSIFIERS, GENERATED, FEATURES = "data/classifiers", "data/generated", "data/features"


@dataclass(frozen=True)
class Picture:
    """A picture to be shown: where it is (a data URI), and in words."""

    src: str
    alt: str


def picture(image: NDArray[np.uint8], alt: str) -> Picture:
    """An image uint8 [H, W, C], scaled down to at most 96 pixels: PNG if it is tiny, else WebP."""
    drawn = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    tiny = max(drawn.size) <= 32
    drawn.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Picture(_data_uri(drawn, "PNG" if tiny else "WEBP"), alt)


def grid(
    files: Files,
    path: str = "metrics/grid.png",
    alt: str = "Rows of real and generated images, a column per class",
) -> Picture:
    """A PNG file as it is, unless it is large."""
    content = files.read(path)
    if len(content) <= MAX_GRID_BYTES:
        return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", alt)
    try:
        drawn = Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"{files.name}: {path}: not a picture; run dvc repro") from error
    drawn.thumbnail((1400, 1400), Image.Resampling.LANCZOS)
    return Picture(_data_uri(drawn, "WEBP"), alt)


def _data_uri(image: Image.Image, kind: str) -> str:
    content = io.BytesIO()
    image.save(content, format=kind, **({"quality": 85} if kind == "WEBP" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class Made:
    """A generated image with what it was made from, and a line of numbers."""

    image: Picture
    source: Picture | None
    partner: Picture | None
    caption: str


class Sets:
    """The real training images and one generated set of a run."""

    def __init__(self, files: Files, generated: str):
        """`generated` is a folder such as data/generated/inversion; raises UserError if one is missing."""
        self.files, self.name = files, generated.rpartition("/")[2]
        self.made = ImageSetReader(files.folder(generated))

    @cached_property
    def real(self) -> ImageSetReader:
        """The real training images."""
        return ImageSetReader(self.files.folder(REAL))

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.real.ids)}

    def fact(self, name: str, row: int) -> Any:
        """A value of a further column, None if there is no such column."""
        column = self.made.provenance.get(name)
        return None if column is None else column[row]

    def label(self, row: int) -> str:
        """Class of a generated image."""
        return self.made.class_names[int(self.made.labels[row])]

    def picture(self, row: int) -> Picture:
        """A generated image."""
        return picture(self.made.take([row]).images[0], f"generated {self.label(row)}, {self.made.ids[row]}")

    def real_picture(self, image_id: Any, what: str) -> Picture | None:
        """The real image of that id, if there is one."""
        row = self._row_of.get(str(image_id))
        if row is None:
            return None
        label = self.real.class_names[int(self.real.labels[row])]
        return picture(self.real.take([row]).images[0], f"{what}: real {label}, {image_id}")

    def shown(self, row: int, caption: str) -> Made:
        """A generated image with its source and partner."""
        source = self.real_picture(self.fact("source_id", row), "source")
        partner_id = self.fact("partner_id", row)
        partner = None if partner_id is None else self.real_picture(partner_id, "partner")
        return Made(self.picture(row), source, partner, caption)


def first_of_each_class(sets: Sets) -> list[Made]:
    """The first generated images of the first classes: not chosen by looks."""
    labels, made = sets.made.labels, []
    for k in np.unique(labels)[:NUM_CLASSES]:
        for row in np.flatnonzero(labels == k)[:PER_CLASS].tolist():
            made.append(sets.shown(row, _recipe(sets, row)))
    return made


def _recipe(sets: Sets, row: int) -> str:
    names = {"noise_std": "λ", "interpolation": "a", "strength": "strength", "guidance_scale": "s"}
    known = {words: sets.fact(name, row) for name, words in names.items()}
    numbers = [f"{words} {value:.2f}" for words, value in known.items() if isinstance(value, int | float)]
    return ", ".join([sets.label(row), *numbers])


@dataclass(frozen=True)
class Judged:
    """Generated images by how sure classifiers of real images are of their label."""

    num: int
    out_of: int
    classifiers: int
    arm: str
    by_class: list[tuple[str, float, float]]  # class, mean confidence, share taken for it, both 0 to 1
    doubted: list[Made]
    sure: list[Made]


def judged(sets: Sets, arm: str) -> Judged:
    """Ask the classifiers of `arm`, which has seen real images only, about generated ones."""
    device = resolve_device("auto")
    classifiers = [c.on(device) for c in load_classifiers(sets.files.folder(f"{CLASSIFIERS}/{arm}"))]
    rows = choose(len(sets.made), MAX_JUDGED, 0)
    confidence, guess = (
        np.concatenate(x) for x in zip(*_asked(sets, rows, classifiers, device), strict=True)
    )
    order = np.argsort(confidence, kind="stable")

    def made(i: int) -> Made:
        row, taken = int(rows[i]), sets.made.class_names[int(guess[i])]
        said = f"{sets.label(row)}: {100 * confidence[i]:.0f} %"
        return sets.shown(row, said if taken == sets.label(row) else f"{said}, taken for {taken}")

    labels = sets.made.labels[rows]
    by_class = [
        (
            sets.made.class_names[int(k)],
            float(confidence[labels == k].mean()),
            float((guess == k)[labels == k].mean()),
        )
        for k in np.unique(labels)
    ]
    return Judged(
        len(rows),
        len(sets.made),
        len(classifiers),
        arm,
        sorted(by_class, key=lambda row: row[1]),
        [made(i) for i in order[:NUM_DOUBTED]],
        [made(i) for i in order[::-1][:NUM_SURE]],
    )


def _asked(
    sets: Sets, rows: NDArray[np.int64], classifiers: Sequence[Any], device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Mean probability of each image's label, and the likeliest class, piece by piece."""
    with tqdm(total=len(rows), desc="doubt", unit="image", mininterval=1) as bar:
        for piece in sets.made.pieces(rows.tolist()):
            images = piece.tensor().to(device)
            with torch.no_grad():
                mean = torch.stack([predict(images) for predict in classifiers]).mean(0).cpu().numpy()
            bar.update(len(piece))
            yield mean[np.arange(len(piece)), piece.labels], mean.argmax(1)


@dataclass(frozen=True)
class Nearest:
    """Generated images that lie nearest to a training image, by the features of a network."""

    features: str
    num: int
    out_of: int
    pairs: list[Made]


def nearest(sets: Sets, features: str, num_images: int, seed: int) -> Nearest:
    """Pairs by distance, from what `measure` has extracted; num_images and seed are those of `measure`."""
    folder = f"{FEATURES}/{features}"
    made, real = (load_features(sets.files.folder(f"{folder}/{name}")) for name in (sets.name, REAL_SET))
    made_rows, real_rows = (
        _measured_rows(reader, name, x, num_images, seed, Path(folder))
        for reader, name, x in ((sets.made, sets.name, made), (sets.real, REAL_SET, real))
    )
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(real.astype(np.float64))
    distances, neighbours = (x[:, 0] for x in index.kneighbors(made.astype(np.float64)))
    pairs = []
    for i in np.argsort(distances, kind="stable")[:NUM_NEAREST].tolist():
        row, near = int(made_rows[i]), sets.real.ids[int(real_rows[neighbours[i]])]
        image = sets.real_picture(near, "nearest")
        said = "its source" if sets.fact("source_id", row) == near else "not its source"
        caption = f"{sets.label(row)}: distance {distances[i]:.2f}, {said}"
        pairs.append(Made(sets.picture(row), image, None, caption))
    return Nearest(features, len(made), len(sets.made), pairs)


def _measured_rows(
    reader: ImageSetReader, name: str, features: Any, num_images: int, seed: int, folder: Path
) -> NDArray[np.int64]:
    """Which images `measure` took: the choice is the same function of its seed."""
    rows = choose(len(reader), num_images, derive_seed(seed, name))
    if len(rows) != len(features):
        raise UserError(f"{folder}/{name}: {len(features)} features, not {len(rows)}; run dvc repro measure")
    return rows
