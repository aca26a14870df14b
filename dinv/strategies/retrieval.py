"""The nearest images of a local pool in place of generated ones: the "KNN" baseline; no diffusion model.

As Zhou, Sahak and Ba 2023 compare with clip-retrieval on LAION-5B, whose service is gone; Burg et al. 2023
(arXiv 2304.10253) find it hard to beat on natural images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from dinv.errors import UserError
from dinv.features.params import WatchedNetwork
from dinv.features.watched import FrozenNetwork
from dinv.images.fingerprint import BITS, Fingerprints, fingerprints, nearest_distance, read_fingerprints
from dinv.images.image_set import ImageSetReader
from dinv.images.labelled import batches
from dinv.section import PositiveInt
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel, StrategyParams
from dinv.strategies.pool import Pool

HELD_OUT = Path("data/fingerprints.txt")  # of test and validation images, which stage download writes
CHUNK = 10_000  # pool images whose similarities are in memory at once; a constant
Array = NDArray[np.float32]


class RetrievalParams(StrategyParams):
    """`input` is the pool.

    `max_duplicate_bits`: a pool image whose fingerprint differs in so few of 256 bits, or fewer, from that of
    a test, validation or training image is refused.
    """

    features: WatchedNetwork
    num_images_per_source: PositiveInt
    resize: Literal["pad", "center_crop", "squash"]
    max_duplicate_bits: Annotated[int, Field(ge=0, lt=BITS)]


@dataclass(frozen=True)
class AsTheyAre:
    """Inputs `images`: uint8 [B, H, W, C]."""

    uses_model: ClassVar[bool] = False

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Nothing to load."""
        return lambda inputs: inputs["images"]


def nearest(queries: Array, pool: Array, k: int, chunk: int = CHUNK) -> tuple[NDArray[np.int64], Array]:
    """The k pool rows of largest cosine for each query, best first, and the cosines: [Q, k] each.

    Exact; the pool is compared a chunk at a time. Cosines are rounded to 5 digits, so that equal images are
    equally near, and of equally near ones the first in the pool is taken.

    Args:
        queries: features of length 1, float32 [Q, D].
        pool: likewise, [N, D] with N >= k.
        k: how many.
        chunk: how many pool rows at a time.
    """
    rows, found = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    for part in batches(len(pool), chunk):
        cosines = np.round(queries @ pool[part].T, 5)
        here = np.broadcast_to(np.arange(part.start, part.start + cosines.shape[1]), cosines.shape)
        rows, found = np.concatenate([rows, here], 1), np.concatenate([found, cosines], 1)
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        rows, found = np.take_along_axis(rows, order, 1), np.take_along_axis(found, order, 1)
    return rows, found


class Retrieval:
    """The K nearest pool images of every training image, labelled as it is.

    The authors: K = 10, 25 and 50, CLIP ViT-L/14 features. Two images may retrieve the same one. Pool images
    that are near-duplicates of test or validation images, which would leak, or of training images, which
    would add nothing, are left out and counted.
    """

    Params = RetrievalParams

    def __init__(self, params: RetrievalParams, material: Material):
        require_pool(material.folder)
        self.params, self.real = params, material.real
        self.pool = Pool(material.folder, self.real.shape, params.resize)
        allowed = usable(self.pool, read_fingerprints(HELD_OUT), self.real, params.max_duplicate_bits)
        self.num_refused = len(self.pool) - len(allowed)
        k = params.num_images_per_source
        if len(allowed) < k:
            raise UserError(
                f"retrieval: {len(allowed)} of {len(self.pool)} images of {material.folder} can be used, "
                f"fewer than num_images_per_source = {k}; lower it, or add images"
            )
        network = FrozenNetwork.of(params.features)
        queries, candidates = network.features_of(self.real), network.features_of(self.pool, allowed)
        found, self._cosines = nearest(queries, candidates, k)
        self._neighbours = np.asarray(allowed)[found]
        self._row_of = {pool_id: row for row, pool_id in enumerate(self.pool.ids)}

    def __len__(self) -> int:
        return self.params.num_images_per_source * len(self.real)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The nearest of every image, then the second, ...: more of them only append."""
        return [self._draw(*divmod(i, len(self.real))) for i in indices]

    def _draw(self, rank: int, row: int) -> Draw:
        source = self.real.ids[row]
        facts: Facts = {
            "variant": rank,
            "pool_id": self.pool.ids[self._neighbours[row, rank]],
            "similarity": round(float(self._cosines[row, rank]), 5),
            "num_refused": self.num_refused,
            "unet_passes": 0,
        }
        return Draw(f"{source}#{rank}", int(self.real.labels[row]), source, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """The images themselves."""
        rows = [self._row_of[str(d.facts["pool_id"])] for d in draws]
        return {"images": torch.from_numpy(self.pool.take(rows).images)}

    def renderer(self) -> AsTheyAre:
        """Nothing is made."""
        return AsTheyAre()

    def previews(self) -> "list[tuple[str, Retrieval]]":
        """The nearest ones."""
        return [("retrieved", self)]


def require_pool(folder: Path, user: str = "retrieval") -> None:
    """Raise UserError unless the folder is there and is none of the pipeline's own."""
    if not folder.is_dir():
        raise UserError(f"{user}: input = {folder.as_posix()!r}: no such folder; put the pool there")
    for own in ("data/real", "data/learned", "data/generated"):
        if folder.resolve().is_relative_to(Path(own).resolve()):
            raise UserError(
                f"{user}: input = {folder.as_posix()!r}: the pipeline's own images; name a folder of others"
            )


def usable(
    pool: Pool, held_out: Fingerprints, training: ImageSetReader, max_bits: int, user: str = "retrieval"
) -> list[int]:
    """Rows of the pool that are no near-duplicate of a held-out or training image; says how many are.

    An image that is near to both counts as one of a held-out image.
    """
    known = np.concatenate([fingerprints(training.take(rows).images) for rows in _hundreds(len(training))])
    allowed: list[int] = []
    num_held_out = 0
    for rows in _hundreds(len(pool)):
        found = fingerprints(pool.take(rows).images)
        leaks = nearest_distance(found, held_out) <= max_bits
        repeats = nearest_distance(found, known) <= max_bits
        num_held_out += int(leaks.sum())
        allowed += np.asarray(rows)[~leaks & ~repeats].tolist()
    num_training = len(pool) - num_held_out - len(allowed)
    for count, kind in ((num_held_out, "test or validation"), (num_training, "training")):
        tqdm.write(
            f"{user}: {count} of {len(pool)} pool images are near-duplicates of {kind} images and left out"
        )
    return allowed


def _hundreds(n: int) -> list[list[int]]:
    return [list(range(n))[part] for part in batches(n, 100)]
