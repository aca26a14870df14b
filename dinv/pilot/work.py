"""The work of a pilot: images of every block, and every classifier's answers about all images.

All of it stays on disk as it is finished: a pilot that was killed goes on from there.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.base import LabelledImages, LearnerParams, TrainingSet
from dinv.classify.frozen import find_network
from dinv.classify.generated import real_rows
from dinv.classify.probe import (
    ProbeParams,
    chosen_strength,
    features_of,
    fit_head,
    head_scores,
    weighty,
)
from dinv.classify.registry import LEARNERS
from dinv.classify.store import StoredClassifier
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model, model_digest
from dinv.execution.code import code_digest
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore
from dinv.execution.run import run_parts
from dinv.files import write_json
from dinv.images.image_set import (
    IMAGES,
    ImageSet,
    ImageSetReader,
    concatenate,
    load_image_set,
    save_image_set,
)
from dinv.inversion.base import Place
from dinv.inversion.registry import METHODS
from dinv.params import LEARNED, Params
from dinv.pilot.design import Design, Subset
from dinv.pilot.plan import Plan, scaled_block, scaled_learner
from dinv.pilot.settings import Competition
from dinv.rng import derive_seed
from dinv.strategies.base import Material
from dinv.strategies.registry import STRATEGIES
from dinv.strategies.worker import Form, RenderWorker, generation_plan

SIDES = ("without", "with")


@dataclass(frozen=True)
class Work:
    """What there is to work with.

    Attributes:
        params: all of params.yaml.
        found: what competes.
        plan: how much of it.
        design: what is learned from and scored.
        small: the labelled images as classifiers see them.
        large: as the model sees them.
        folder: for what is finished.
    """

    params: Params
    found: Competition
    plan: Plan
    design: Design
    small: ImageSet
    large: ImageSet
    folder: Path

    @cached_property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return resolve_device(self.params.execution.device)

    @cached_property
    def execution(self) -> ExecutionParams:
        """In this process: a pilot is small."""
        here = {"backend": "local", "num_workers": 1, "address": None}
        return self.params.execution.model_copy(update=here)

    @cached_property
    def model(self) -> LatentDiffusion:
        """The frozen model, loaded where an image is to be made."""
        return load_model(fetch_model(self.params.model), self.params.model, self.device)

    @cached_property
    def identity(self) -> list[object]:
        """Of the model, as stages have it in their parts' keys: parts are shared with them."""
        m = self.params.model
        return [model_digest(fetch_model(m)), m.dtype, m.resolution]

    def make(self, block: Subset) -> ImageSet:
        """Images generated from a block as if there were no others; finished parts are used again."""
        params = scaled_block(self.params.generate[self.found.generate], self.plan)
        folder = self.folder / "blocks" / block.name
        save_image_set(self.large.take(self.design.rows(block).tolist()), folder / "train_model")
        real = ImageSetReader(folder / "train_model")
        material = Material(real, self._learned(params.input, real, folder), lambda: self.model)
        strategy = STRATEGIES[params.strategy](params, material)
        identity = self.identity if strategy.renderer().uses_model else []
        code = code_digest(STRATEGIES.module(params.strategy), "dinv.strategies.worker")
        shape = self.small.images.shape[1:]
        form = Form((shape[0], shape[1], shape[2]), self.small.class_names)
        plan = generation_plan(strategy, form, [code, identity, list(shape)])
        worker = partial(RenderWorker, lambda: self.model, self.execution.micro_batch)
        run_parts(plan, PartStore("generate"), IMAGES, worker, self.execution, folder / "generated")
        return load_image_set(folder / "generated")

    def _learned(self, place: str, real: ImageSetReader, folder: Path) -> Path:
        """What the strategy works with: learned from the block, or a folder of the project."""
        if not place.startswith(LEARNED):
            return Path(place)
        params = scaled_block(self.params.invert[place.removeprefix(LEARNED)], self.plan)
        key = [code_digest(METHODS.module(params.method)), *self.identity]
        there = Place(lambda: self.model, key, self.execution)
        METHODS[params.method].learn(params, real, there, folder / "learned")
        return folder / "learned"

    @cached_property
    def made(self) -> dict[Subset, ImageSet]:
        """Block -> the images generated from it."""
        return {block: self.make(block) for block in self.design.blocks()}

    def generated(self, subset: Subset) -> list[tuple[Subset, list[int]]]:
        """What was generated from a training set: blocks, and rows of their images.

        Of half a block, what was made from nothing of the other half.
        """
        whole = [Subset((b,)) for b in subset.blocks]
        if subset.half is None:
            return [(block, list(range(len(self.made[block])))) for block in whole]
        other = self.design.rows(Subset(subset.blocks, 1 - subset.half))
        held_out = {self.small.ids[row] for row in other}
        return [(block, made_without(self.made[block], held_out)) for block in whole]

    def correct(
        self, side: str, name: str, subset: Subset, advance: Callable[[], object]
    ) -> NDArray[np.bool_]:
        """Which images a classifier gets right, bool [N]; those that it learned from are in there."""
        path = self.folder / "answers" / f"{side}-{name}-{subset.name}.json"
        if not path.is_file():
            params = scaled_learner(self.found.learners[name], self.plan)
            write_json(path, self.answers(side, name, params, subset).tolist())
        advance()
        return np.asarray(json.loads(path.read_text())) == self.small.labels

    def answers(
        self, side: str, name: str, params: LearnerParams, subset: Subset, asked: ImageSet | None = None
    ) -> NDArray[np.int64]:
        """The class that a classifier sees in each image asked about, int64 [N]; None: the labelled ones."""
        rows = self.design.rows(subset).tolist()
        generated = self.generated(subset) if side == "with" else []
        sets = [self.small.take(rows)]
        if sum(len(own) for _, own in generated):
            sets.append(concatenate([self.made[block].take(own) for block, own in generated]))
        data = training_set(sets)
        if isinstance(params, ProbeParams):
            x = [self._real_features[name][rows]]
            if data.mixes:
                x.append(torch.cat([self._made_features[name][block][own] for block, own in generated]))
            known = self._real_features[name] if asked is None else self._extract(params, asked)
            return probe_answers(x, data, params, known)
        seed = derive_seed(self.design.seed, "pilot classifier", subset.name) % 2**32
        fitted = LEARNERS[params.learner].fit(data, params, seed, self.device, lambda n: None)
        stored = StoredClassifier(params.learner, fitted, seed, 0)
        return stored.predict_proba((asked or self.small).tensor(), self.device).argmax(1)

    @cached_property
    def _real_features(self) -> dict[str, torch.Tensor]:
        """Probe -> features of the labelled images, float64 [N, D]."""
        return {name: self._extract(p, self.small) for name, p in self._probes.items()}

    @cached_property
    def _made_features(self) -> dict[str, dict[Subset, torch.Tensor]]:
        """Probe -> block -> features of the images generated from it."""
        return {
            name: {block: self._extract(p, images) for block, images in self.made.items()}
            for name, p in self._probes.items()
        }

    @property
    def _probes(self) -> dict[str, ProbeParams]:
        return {name: p for name, p in self.found.learners.items() if isinstance(p, ProbeParams)}

    def _extract(self, params: ProbeParams, images: ImageSet) -> torch.Tensor:
        """Computed once, and kept where other probes find them."""
        return features_of(images.tensor(), find_network(params.features), self.device)


def made_without(images: ImageSet, held_out: set[str]) -> list[int]:
    """Rows of generated images of which no source, partner or other `..._id` is held out."""
    columns = [values for name, values in images.provenance.items() if name.endswith("_id")]
    return [row for row, ids in enumerate(zip(*columns, strict=True)) if not held_out & set(ids)]


def training_set(sets: Sequence[ImageSet]) -> TrainingSet:
    """Real images, then generated ones if there are any, as learners see them."""
    row_of = {image_id: row for row, image_id in enumerate(sets[0].ids)}
    sources: list[LabelledImages] = []
    for images in sets:
        soft = images.probabilities
        targets = np.eye(len(images.class_names), dtype=np.float32)[images.labels] if soft is None else soft
        rows = real_rows(images.provenance, len(images), row_of) if sources else ()
        sources.append(LabelledImages(images.tensor(), torch.from_numpy(targets), *rows))
    return TrainingSet(sources, sources[0], sets[0].class_names)


def probe_answers(
    x: Sequence[torch.Tensor], data: TrainingSet, params: ProbeParams, asked: torch.Tensor
) -> NDArray[np.int64]:
    """What the learner `probe` answers, from features that are known: [n, D] of each source, and [N, D]."""
    known = TrainingSet([replace(s, images=f) for f, s in zip(x, data.sources, strict=True)], data.real)
    data, known = (weighty(images, params.real_fraction) for images in (data, known))
    c = chosen_strength(data, known, params) if isinstance(params.C, str) else params.C
    head, scaling = fit_head(known, params, c)
    scores = head_scores(head, scaling, asked, params.classifier, params.kernel)
    return head["classes"][scores.argmax(1)].numpy()
