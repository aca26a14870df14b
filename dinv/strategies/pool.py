"""A pool of unlabelled images on this machine: a folder of pictures, of Parquet files, or of idx files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from dinv.errors import UserError
from dinv.images.image_set import ImageSet
from dinv.images.resize import to_square
from dinv.sources.idx import read_idx
from dinv.sources.image_folder import SUFFIXES, read_picture

LABEL_COLUMNS = ("label", "class")
IDX = "*-images-idx3-ubyte.gz"


class Pool:
    """Images that are read as they are asked for, as squares of one shape.

    Attributes:
        ids: N distinct strings: paths in the folder, or a file's name and the row's id or number.
        shape: (H, W, C) that every image is brought to.

    Raises:
        UserError: there is no picture in the folder.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], resize: str):
        self.folder, self.shape, self.resize = folder, shape, resize
        self._files = _open(folder)
        self.ids: list[str] = self._files.ids
        if not self.ids:
            kinds = " ".join(sorted(SUFFIXES))
            raise UserError(
                f"{folder}: no pictures ({kinds}), no .parquet and no {IDX} files; put the pool there"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> ImageSet:
        """The given rows; they have no label, which is written as one class without a name."""
        images = np.stack([self._square(row) for row in rows])
        return ImageSet(images, np.zeros(len(rows), np.int64), [self.ids[row] for row in rows], [""])

    def classes(self, rows: Sequence[int], numbered: Sequence[str]) -> list[str]:
        """Names of the rows' classes: a picture's outermost folder, or a file's column `label` or `class`.

        Args:
            rows: of the pool.
            numbered: names that stand for the numbers in the label files of idx files.

        Raises:
            UserError: a file has no such column, or it holds numbers; labels of idx files are missing,
                damaged or out of range.
        """
        if isinstance(self._files, _IdxPictures):
            return [numbered[label] for label in self._files.labels(len(numbered))[list(rows)]]
        return [self._files.class_of(row) for row in rows]

    def _square(self, row: int) -> NDArray[np.uint8]:
        mode = "L" if self.shape[2] == 1 else "RGB"
        try:
            return to_square(self._files.read(row), self.shape[0], self.resize, mode)
        except UserError as error:
            raise UserError(f"{self.folder}, {self.ids[row]}: {error}") from error


class _PictureFiles:
    def __init__(self, folder: Path):
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        self._paths = [p for p in found if not any(x.startswith(".") for x in p.relative_to(folder).parts)]
        self.ids = [path.relative_to(folder).as_posix() for path in self._paths]

    def read(self, row: int) -> Image.Image:
        return read_picture(self._paths[row])

    def class_of(self, row: int) -> str:
        folder, _, inside = self.ids[row].partition("/")
        if not inside:
            raise UserError(f"{self._paths[row]}: lies in no class's folder; move it, or set labels to none")
        return folder


class _ParquetPictures:
    """Files whose column `image` holds encoded pictures, as dinv and Hugging Face `datasets` write them."""

    def __init__(self, paths: Sequence[Path]):
        self._groups: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        self.ids: list[str] = []
        for path in paths:
            with _damage_named(path), pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                if "image" not in names:
                    raise UserError(f"{path}: has no column `image` of encoded pictures; rename it")
                for group in range(file.num_row_groups):
                    self._groups.append((path, group))
                    self._starts.append(len(self.ids))
                    n = file.metadata.row_group(group).num_rows
                    own = file.read_row_group(group, ["id"])["id"].to_pylist() if "id" in names else range(n)
                    self.ids += [f"{path.stem}/{group}/{i}" for i in own]
        self._cached: tuple[int, list[Any]] = (-1, [])
        self._classes: list[str] = []

    def read(self, row: int) -> Image.Image:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        path, number = self._groups[group]
        with _damage_named(path):
            if self._cached[0] != group:
                with pq.ParquetFile(path) as file:
                    self._cached = (group, file.read_row_group(number, ["image"])["image"].to_pylist())
            stored = self._cached[1][row - self._starts[group]]
            content: bytes = stored["bytes"] if isinstance(stored, dict) else stored
        return read_picture(path / self.ids[row], content)

    def class_of(self, row: int) -> str:
        if not self._classes:
            for path in dict.fromkeys(path for path, _ in self._groups):
                self._classes += _classes(path)
        return self._classes[row]


class _IdxPictures:
    """Grey images in files as MNIST's; their labels are numbers without names."""

    def __init__(self, paths: Sequence[Path]):
        self._paths, self._images = paths, [read_idx(path) for path in paths]
        self._starts = np.cumsum([0, *(len(images) for images in self._images)])
        names = [path.name.partition("-images-")[0] for path in paths]
        self.ids = [
            f"{name}/{i}"
            for name, images in zip(names, self._images, strict=True)
            for i in range(len(images))
        ]

    def read(self, row: int) -> Image.Image:
        file = int(np.searchsorted(self._starts, row, side="right")) - 1
        return Image.fromarray(self._images[file][row - self._starts[file]])

    def labels(self, num_classes: int) -> NDArray[np.uint8]:
        """Of every row."""
        return np.concatenate([self._labels(i, num_classes) for i in range(len(self._paths))])

    def _labels(self, file: int, num_classes: int) -> NDArray[np.uint8]:
        images = self._paths[file]
        path = images.with_name(images.name.replace("images-idx3", "labels-idx1"))
        found = read_idx(path)
        if found.shape != (len(self._images[file]),):
            raise UserError(f"{path}: not one label for each image of {images.name}; set labels to none")
        if found.max(initial=0) >= num_classes:
            raise UserError(
                f"{path}: label {found.max()}, but the task has {num_classes} classes; fetch its own"
            )
        return found


def _open(folder: Path) -> _PictureFiles | _ParquetPictures | _IdxPictures:
    parquet, idx = sorted(folder.glob("*.parquet")), sorted(folder.glob(IDX))
    return _ParquetPictures(parquet) if parquet else _IdxPictures(idx) if idx else _PictureFiles(folder)


def _classes(path: Path) -> list[str]:
    """Of every row, as texts."""
    with _damage_named(path), pq.ParquetFile(path) as file:
        column = next((name for name in LABEL_COLUMNS if name in file.schema_arrow.names), None)
        if column is None or not pa.types.is_string(file.schema_arrow.field(column).type):
            raise UserError(
                f"{path}: has no column {' or '.join(LABEL_COLUMNS)} with names of classes; write one, or "
                "set labels to none"
            )
        found: list[str] = file.read([column])[column].to_pylist()
        return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what a damaged file causes into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: damaged, or its images are not pictures ({reason})") from error
