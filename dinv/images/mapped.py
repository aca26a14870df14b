"""An image set whose pixels stay in a file: memory holds what is being used, and the system may drop it."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dinv.execution.parts import scratch_root

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MappedImageSet:
    """Labelled images, to be read and not written.

    Attributes:
        pixels: uint8 [N, C, H, W], mapped from a file that has no name and goes with this object.
        labels, ids, class_names, provenance, probabilities: as in ImageSet.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]
    class_names: list[str]
    provenance: dict[str, list[Any]]
    probabilities: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def tensor(self) -> "torch.Tensor":
        """Images as a uint8 tensor [N, C, H, W] that shares the mapping: no copy."""
        import torch  # noqa: PLC0415 - takes seconds, and fetching or exporting images needs none of it

        return torch.from_numpy(self.pixels)


def map_pixels(pieces: Iterable[NDArray[np.uint8]], shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Images [n, H, W, C], piece by piece, as one mapped array of the given shape (N, C, H, W).

    The file lies in the scratch folder, without a name, so that nothing stays of it however the
    process ends. Pages are private: a write, which none should do, costs memory and spoils no file.
    """
    if shape[0] == 0:
        return np.zeros(shape, np.uint8)
    scratch_root().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch_root()) as file:
        for piece in pieces:
            file.write(np.ascontiguousarray(piece.transpose(0, 3, 1, 2)).data)
        file.flush()
        return np.memmap(file, np.uint8, mode="c", shape=shape)
