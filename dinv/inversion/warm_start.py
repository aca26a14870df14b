"""Diffusion Inversion's stage 1 from a warm start: learning begins where the model's image encoder points.

A method of its own, so that what `image_embeddings` has learned keeps its finished parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.memory import FittingBatch
from dinv.execution.parts import PartStore, to_bytes
from dinv.execution.run import run_parts
from dinv.files import part_paths
from dinv.images.image_set import ImageSetReader, batches
from dinv.inversion.bank import (
    EMBEDDINGS,
    EmbeddingBank,
    bank_statistics,
    concatenate,
    load_part,
    loss_curves,
    save_bank,
    save_statistics,
)
from dinv.inversion.base import Loss, OpenModel, Place
from dinv.inversion.encoded import encoder_embeds
from dinv.inversion.image_embeddings import InvertTask, make_plan
from dinv.inversion.invert import ImageEmbeddingsParams, invert


class WarmImageEmbeddingsParams(ImageEmbeddingsParams):
    """As for an embedding per image; init_std is the noise around the start, which is every token's."""

    init: Literal["image_encoder"]  # type: ignore[assignment]


@dataclass(frozen=True)
class WarmTask:
    """What is inverted, and the encoder's embeddings of it, float32 [B, D]."""

    images: InvertTask
    starts: torch.Tensor


class Started(LatentDiffusion):
    """The model with a start for each image, float32 [B, D], where others have the empty prompt."""

    def __init__(self, model: LatentDiffusion, starts: torch.Tensor):
        vars(self).update(vars(model))
        self._starts = starts

    def empty_prompt_embeds(self, num_tokens: int) -> torch.Tensor:
        """The starts as K equal tokens, which attention treats as one: [B, K, D]."""
        return self._starts[:, None].expand(-1, num_tokens, -1).to(self.device)


class WarmImageEmbeddings:
    """Writes what `image_embeddings` does."""

    Params = WarmImageEmbeddingsParams

    @staticmethod
    def learn(
        params: WarmImageEmbeddingsParams, real: ImageSetReader, place: Place, output: Path
    ) -> list[Loss]:
        """One embedding per image; raises UserError where the model has no image encoder."""
        starts = encoder_embeds(place.open_model(), real, "warm_image_embeddings")
        key = [*place.key, params.model_dump(exclude={"method"})]
        plan = make_plan(real, key, params.num_visits)

        def task(rows: Sequence[int]) -> WarmTask:
            return WarmTask(plan.task(rows), starts[list(rows)])

        worker = partial(WarmWorker, place.open_model, params, place.execution.micro_batch)
        run_parts(replace(plan, task=task), PartStore("invert"), EMBEDDINGS, worker, place.execution, output)
        parts = part_paths(output, EMBEDDINGS.suffix, "embeddings")
        save_statistics(bank_statistics(map(load_part, parts), len(real.class_names)), output)
        return loss_curves(map(load_part, parts))


class WarmWorker:
    """Task -> bytes of an embedding part."""

    def __init__(self, open_model: OpenModel, params: WarmImageEmbeddingsParams, micro_batch: int):
        self.model, self.batch = open_model(), FittingBatch(micro_batch)
        self.params = ImageEmbeddingsParams.model_validate({**params.model_dump(), "init": "empty"})

    def compute(self, task: WarmTask, advance: Callable[[int], None]) -> bytes:
        """Learn one embedding per image."""
        bank = self.batch.run(partial(self._learn, task), advance)
        stored = bank.to(getattr(torch, self.params.storage_dtype))
        return to_bytes(lambda path: save_bank(stored, path))

    def _learn(self, task: WarmTask, size: int, advance: Callable[[int], None]) -> EmbeddingBank:
        images, labels = (torch.from_numpy(x) for x in (task.images.images, task.images.labels))
        banks = []
        for rows in batches(len(task.images.ids), size):
            given: Any = (images[rows], labels[rows], task.images.ids[rows], self.params, size, advance)
            banks.append(invert(Started(self.model, task.starts[rows]), *given))
        return concatenate(banks)
