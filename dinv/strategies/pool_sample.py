"""Random real images of a pool in place of generated ones: what as many real ones bring, labelled or not."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from dinv.errors import UserError
from dinv.images.fingerprint import BITS, read_fingerprints
from dinv.rng import generator
from dinv.section import PositiveInt, Seed
from dinv.strategies.base import Draw, Facts, Inputs, Material, StrategyParams
from dinv.strategies.pool import Pool
from dinv.strategies.retrieval import HELD_OUT, AsTheyAre, require_pool, usable
from dinv.strategies.unlabelled import unlabelled


class PoolSampleParams(StrategyParams):
    """`input` is the pool.

    `labels`: none, or the pool's own, and then as many images of each class. `max_duplicate_bits`: a pool
    image whose fingerprint differs in so few of 256 bits, or fewer, from that of a test, validation or
    training image is refused.
    """

    labels: Literal["none", "own"]
    num_images_per_source: PositiveInt
    resize: Literal["pad", "center_crop", "squash"]
    max_duplicate_bits: Annotated[int, Field(ge=0, lt=BITS)]
    seed: Seed


class PoolSample:
    """Images of the pool by chance, each once; as many as other strategies make of so many labelled ones."""

    Params = PoolSampleParams

    def __init__(self, params: PoolSampleParams, material: Material):
        require_pool(material.folder, "pool_sample")
        self.params, self.real = params, material.real
        self.pool = Pool(material.folder, self.real.shape, params.resize)
        bits = params.max_duplicate_bits
        allowed = usable(self.pool, read_fingerprints(HELD_OUT), self.real, bits, "pool_sample")
        self.num_refused = len(self.pool) - len(allowed)
        self._rows, self._labels = self._chosen(allowed)
        self._row_of = {pool_id: row for row, pool_id in enumerate(self.pool.ids)}

    def __len__(self) -> int:
        return self.params.num_images_per_source * len(self.real)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """The first image, the second, ...: more images only append."""
        return [self._draw(i) for i in indices]

    def _draw(self, index: int) -> Draw:
        facts: Facts = {
            "pool_id": self.pool.ids[self._rows[index]],
            "num_refused": self.num_refused,
            "seed": self.params.seed,
            "unet_passes": 0,
        }
        draw = unlabelled("pool", index, len(self.real.class_names), facts)
        return draw if self._labels is None else Draw(draw.id, self._labels[index], None, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """The images themselves."""
        rows = [self._row_of[str(d.facts["pool_id"])] for d in draws]
        return {"images": torch.from_numpy(self.pool.take(rows).images)}

    def renderer(self) -> AsTheyAre:
        """Nothing is made."""
        return AsTheyAre()

    def previews(self) -> "list[tuple[str, PoolSample]]":
        """Some of them; without labels columns are no classes."""
        return [("of the pool", self)]

    def _chosen(self, rows: list[int]) -> tuple[list[int], list[int] | None]:
        """As many rows as are asked for, by chance, and their labels if these are taken."""
        order = torch.randperm(len(rows), generator=generator(self.params.seed, "pool")).tolist()
        shuffled = [rows[i] for i in order]
        if self.params.labels == "none":
            self._require(len(shuffled), len(self), "images")
            return shuffled[: len(self)], None
        names = self.real.class_names
        found = self.pool.classes(shuffled, names)
        each = -(-len(self) // len(names))
        queues = [[row for row, name in zip(shuffled, found, strict=True) if name == k] for k in names]
        for name, queue in zip(names, queues, strict=True):
            self._require(len(queue), each, f"images of class {name!r}")
        labels = [i % len(names) for i in range(len(self))]
        return [queues[k][i // len(names)] for i, k in enumerate(labels)], labels

    def _require(self, found: int, wanted: int, what: str) -> None:
        if found < wanted:
            raise UserError(
                f"pool_sample: {found} {what} of {self.pool.folder} can be used, {wanted} are asked for by "
                f"num_images_per_source = {self.params.num_images_per_source}; lower it, or add images"
            )
