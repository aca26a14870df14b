"""A torch data set that generates its images when they are asked for."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.execution.code import code_digest
from dinv.execution.device import resolve_device
from dinv.execution.memory import FittingBatch
from dinv.execution.parts import scratch_root
from dinv.files import digest_of
from dinv.images.image_set import ImageSetReader
from dinv.on_demand.groups import group_of
from dinv.on_demand.store import PixelStore
from dinv.params import Params, parse_params, read_yaml
from dinv.section import did_you_mean
from dinv.strategies.base import Inputs, Material, Strategy
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.worker import Form, RenderTask, image_digests, micro_batches

PARAMS = Path("params.yaml")
GIBIBYTE = 2**30
Item = tuple[Any, Any]


class GeneratedImages(Dataset[Item]):
    """The image set of a block of `generate`, made image by image when it is read.

    An item is (image uint8 [C, H, W], label): a number, or class probabilities float32 [M] where the strategy
    has soft labels. Image i is the i-th of stage generate with the same parameters. Images are made in
    groups, those that the stage computes together, so that pixels are equal too (on the same machine and with
    the same execution.micro_batch); what is made and not asked for yet waits on disk. It works with
    DataLoader's workers, forked or spawned; each loads the model when it first has to make an image. On a
    GPU they must be spawned: DataLoader(..., multiprocessing_context="spawn").

    Args:
        block: a block of `generate` in params.yaml of this folder. What it reads must be there: its `input`
            and data/real, which `dvc repro` or `dvc pull` bring.
        cache: folder that keeps images that were made; None: on_demand in the project's scratch folder.
        size_limit: bytes on disk, about. Below the size of the whole set each miss makes a group again.
        group: images that are made together, >= 1; None: those of stage generate. Fewer make a single image
            sooner, and its pixels may differ from the stage's by rounding.
        device: as execution.device; None: that of params.yaml.
        transform: called with each image.
        changes: other values of the block's parameters, such as num_images_per_embedding=1000.

    Raises:
        UserError: a wrong parameter, or something it reads is missing or damaged.
    """

    def __init__(
        self,
        block: str,
        *,
        cache: Path | str | None = None,
        size_limit: int = GIBIBYTE,
        group: int | None = None,
        device: str | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
        **changes: Any,
    ):
        self.params, self.block = changed_params(block, changes), block
        execution = self.params.execution
        self.group, self.transform = execution.micro_batch if group is None else group, transform
        if self.group < 1:
            raise UserError(f"group = {group}: images that are made together, must be >= 1")
        self.model = Model(self.params.model, device or execution.device)
        self._store = PixelStore(Path(cache) if cache else scratch_root() / "on_demand", size_limit)
        self._batch = FittingBatch(self.group)
        real = ImageSetReader(Path("data/real/train"))
        self.form = Form(real.shape, real.class_names)
        self._length, self._key = len(self.strategy), self._common_key()
        self._digests: dict[int, str] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several items, as DataLoader asks for a batch: each group is made at most once."""
        places = [self._place(index) for index in indices]
        groups = {group.start: group for group in map(self._group, places)}
        wanted: dict[int, list[int]] = {start: [] for start in groups}
        for place in places:
            wanted[self._group(place).start].append(place)
        pixels: dict[int, bytes] = {}
        for start, rows in wanted.items():
            pixels |= self._pixels(groups[start], rows)
        targets = self._targets(places)
        return [(self._image(pixels[p]), target) for p, target in zip(places, targets, strict=True)]

    @property
    def class_names(self) -> list[str]:
        """One name per class."""
        return self.form.class_names

    @property
    def labels(self) -> torch.Tensor:
        """Classes of all images, int64 [N]; nothing is generated."""
        return torch.tensor([draw.label for draw in self.strategy.draws(range(len(self)))])

    @cached_property
    def strategy(self) -> Strategy:
        """What draws and renders the images."""
        params = self.params.generate[self.block]
        reader = ImageSetReader(Path("data/real/train_model"))
        made: Strategy = STRATEGIES[params.strategy](
            params, Material(reader, Path(params.input), self.model.open)
        )
        return made

    def __getstate__(self) -> dict[str, Any]:
        """All but what another process makes for itself."""
        return {k: v for k, v in self.__dict__.items() if k not in ("strategy", "_render")}

    @cached_property
    def _render(self) -> Callable[[Inputs], torch.Tensor]:
        return self.strategy.renderer().open(self.model.open)

    def _place(self, index: int) -> int:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"{index}: {self.block} has {len(self)} images")
        return int(place)

    def _group(self, place: int) -> range:
        return group_of(place, self.group, len(self))

    def _common_key(self) -> list[Any]:
        """What determines every image, besides its draw and inputs: as in stage generate."""
        name, model = self.params.generate[self.block].strategy, self.params.model
        code = code_digest(STRATEGIES.module(name), "dinv.strategies.worker")
        uses_model = self.strategy.renderer().uses_model
        identity = [self.model.digest, model.dtype, model.resolution] if uses_model else []
        return [code, identity, self.form.shape]

    def _digest(self, group: range) -> str:
        """Of all that determines the images of a group, and of which are made together."""
        if group.start not in self._digests:
            draws = self.strategy.draws(group)
            self._digests[group.start] = digest_of(image_digests(self.strategy, draws, self._key))
        return self._digests[group.start]

    def _pixels(self, group: range, rows: Sequence[int]) -> dict[int, bytes]:
        """Pixels of some images of a group; all of it is made if one of them is not there."""
        digest = self._digest(group)
        found = self._known(digest, group, rows)
        if found is not None:
            return found
        with self._store.lock(digest):
            found = self._known(digest, group, rows)  # another process may have made them meanwhile
            if found is not None:
                return found
            made = dict(zip(group, self._make(group), strict=True))
            self._store.put({_name(digest, group, row): pixels for row, pixels in made.items()})
        return {row: made[row] for row in rows}

    def _known(self, digest: str, group: range, rows: Sequence[int]) -> dict[int, bytes] | None:
        found = {row: self._store.get(_name(digest, group, row)) for row in rows}
        known = {row: pixels for row, pixels in found.items() if pixels is not None}
        return known if len(known) == len(found) else None

    def _make(self, group: range) -> list[bytes]:
        draws = self.strategy.draws(group)
        task = RenderTask(self.strategy.renderer(), self.strategy.inputs(draws), draws, self.form)
        render = self._render

        def images(size: int, advance: Callable[[int], None]) -> torch.Tensor:
            return torch.cat([render(batch) for batch in micro_batches(task.inputs, size)])

        return [image.tobytes() for image in task.part(self._batch.run(images, lambda n: None)).images]

    def _image(self, pixels: bytes) -> Any:
        array = np.frombuffer(pixels, np.uint8).reshape(self.form.shape)
        image = torch.from_numpy(array.transpose(2, 0, 1).copy())
        return image if self.transform is None else self.transform(image)

    def _targets(self, places: Sequence[int]) -> list[Any]:
        draws = self.strategy.draws(places)
        return [d.label if d.probabilities is None else torch.tensor(d.probabilities) for d in draws]


class Model:
    """The frozen model: found now, loaded by each process when it is needed."""

    def __init__(self, params: ModelParams, device: str):
        self.params, self.device = params, device
        self._loaded: tuple[int, LatentDiffusion] | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of the model's files."""
        return model_digest(fetch_model(self.params, local_files_only=True))

    def open(self) -> LatentDiffusion:
        """The model in this process; raises UserError where a forked process would need the GPU."""
        device = resolve_device(self.device)
        if self._loaded is None or (self._loaded[0] != os.getpid() and device.type != "cpu"):
            if device.type == "cuda" and torch.cuda._is_in_bad_fork():
                raise UserError(
                    "a forked worker cannot use the GPU; DataLoader(..., multiprocessing_context='spawn')"
                )
            folder = fetch_model(self.params, local_files_only=True)
            self._loaded = os.getpid(), load_model(folder, self.params, device)
        return self._loaded[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": None}


def changed_params(block: str, changes: dict[str, Any]) -> Params:
    """params.yaml with other values in a block of `generate`; raises UserError."""
    raw = read_yaml(PARAMS)
    blocks = raw.get("generate") or {}
    if block not in blocks:
        hint = did_you_mean(block, blocks)
        raise UserError(f"generate.{block}: no such block in {PARAMS}{hint}; there are {', '.join(blocks)}")
    blocks[block] = {**blocks[block], **changes}
    return parse_params(raw, str(PARAMS))


def _name(digest: str, group: range, row: int) -> str:
    return f"{digest}/{row - group.start}"
