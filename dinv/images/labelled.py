"""ImageSet: labelled uint8 images with ids and provenance, in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dinv.files import bytes_digest, digest_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    Attributes:
        images: uint8 [N, H, W, C] with C = 1 or 3.
        labels: int64 [N], indices into class_names.
        ids: N distinct strings.
        class_names: one name per class; a class may have no image.
        provenance: further columns, N values each (e.g. source id, guidance scale).
        probabilities: soft labels, float32 [N, number of classes], each row sums to 1; None: each
            image is of the class `labels` says, and of no other.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]
    class_names: list[str]
    provenance: dict[str, list[Any]] = field(default_factory=dict)
    probabilities: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.ids)
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, self.images.shape
        assert self.labels.dtype == np.int64, self.labels.dtype
        lengths = [len(column) for column in self.provenance.values()]
        assert {len(self.images), len(self.labels), *lengths} <= {n}, "columns differ in length"
        if self.probabilities is not None:
            assert self.probabilities.dtype == np.float32, self.probabilities.dtype
            assert self.probabilities.shape == (n, len(self.class_names)), self.probabilities.shape
            assert are_distributions(self.probabilities), "probabilities do not sum to 1"

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "ImageSet":
        """Return the given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        provenance = {k: [v[i] for i in index] for k, v in self.provenance.items()}
        ids = [self.ids[i] for i in index]
        soft = None if self.probabilities is None else self.probabilities[index]
        return ImageSet(self.images[index], self.labels[index], ids, self.class_names, provenance, soft)

    def digests(self, key: Any) -> list[str]:
        """One digest per image: of a JSON-serialisable key and the image's pixels, labels and id."""
        common = digest_of(key).encode()
        soft: Any = [()] * len(self) if self.probabilities is None else self.probabilities[:, None]
        return [
            bytes_digest(common, pixels.tobytes(), label.tobytes(), i.encode(), *(p.tobytes() for p in row))
            for pixels, label, i, row in zip(self.images, self.labels, self.ids, soft, strict=True)
        ]

    def tensor(self) -> "torch.Tensor":
        """Images as a uint8 tensor [N, C, H, W]: a copy; `ImageSetReader.mapped` makes none."""
        import torch  # noqa: PLC0415 - takes seconds, and fetching or exporting images needs none of it

        return torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()


def are_distributions(probabilities: NDArray[np.float32]) -> bool:
    """Whether every row of [N, M] is one of probabilities, up to rounding."""
    sums = probabilities.sum(1, dtype=np.float64)
    return bool((probabilities >= 0).all() and np.allclose(sums, 1, atol=1e-3))


def concatenate(parts: Sequence[ImageSet]) -> ImageSet:
    """Join image sets of equal shape, classes and provenance columns.

    If some have soft labels, the others get all probability on their label.
    """
    first, labels = parts[0], [p.labels for p in parts]
    return ImageSet(
        np.concatenate([p.images for p in parts]),
        np.concatenate(labels),
        [i for p in parts for i in p.ids],
        first.class_names,
        {k: [v for p in parts for v in p.provenance[k]] for k in first.provenance},
        join_probabilities([p.probabilities for p in parts], labels, len(first.class_names)),
    )


def join_probabilities(
    soft: Sequence[NDArray[np.float32] | None], labels: Sequence[NDArray[np.int64]], num_classes: int
) -> NDArray[np.float32] | None:
    """Soft labels [N, num_classes] of joined sets, one-hot for those without; None if none has any."""
    if all(p is None for p in soft):
        return None
    one_hot = np.eye(num_classes, dtype=np.float32)
    return np.concatenate([one_hot[hard] if p is None else p for p, hard in zip(soft, labels, strict=True)])


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(n)."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))
