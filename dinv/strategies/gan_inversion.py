"""GAN inversion as augmentation: the latent of every image, perturbed and interpolated as embeddings are.

Zhao and Bilen 2022 (arXiv 2204.07513) invert; Zhou, Sahak and Ba 2023 compare with it.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.execution.code import code_digest
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.features.watched import FrozenNetwork
from dinv.gan.latents import LatentSettings, invert_latents
from dinv.gan.store import load_gan, to_floats
from dinv.images.image_set import ImageSetReader, batches
from dinv.images.resize import convert_batch
from dinv.inversion.bank import (
    EMBEDDINGS,
    EmbeddingBank,
    bank_statistics,
    concatenate,
    load_bank,
    save_bank,
)
from dinv.strategies.base import Draw, Facts, Inputs, Material
from dinv.strategies.diffusion_inversion import Perturbation, PerturbationParams
from dinv.strategies.gan import OfGan, frozen_gan

PART_SIZE = 100  # images; a constant of the format, not a setting


class GanInversionParams(PerturbationParams, LatentSettings):
    """`input` is what `gan` learned. Perturbation as in diffusion_inversion, of latents."""


class GanInversion(Perturbation):
    """G((1 - a) z_i + a z_j + lambda xi, y) for the latents z that give training images back best."""

    Params = GanInversionParams

    def __init__(self, params: GanInversionParams, material: Material):
        self.material = material
        _, self._network = frozen_gan(material.folder, material.real, "gan_inversion")
        bank = learned_latents(self._network, material.real, params)
        self._errors = dict(zip(bank.ids, bank.train_loss[-1].tolist(), strict=True))
        statistics = bank_statistics([bank], len(material.real.class_names))
        # Perturbation reads nothing of its own parameters that is not here too, but for what is overridden.
        super().__init__(bank, statistics, params)  # type: ignore[arg-type]

    def _unconditional(self) -> torch.Tensor:
        return self.statistics.mean[None]  # a GAN has no guidance; nothing reads it

    def _rendered(self, source: str) -> Facts:
        return {
            "noise_covariance": self.params.noise_covariance,
            "seed": self.params.seed,
            "inversion_error": round(self._errors[source], 6),
            "unet_passes": 0,
        }

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Perturbed latents, and labels."""
        return {"latents": self.conditions(draws)[:, 0], "label": torch.tensor([d.label for d in draws])}

    def renderer(self) -> OfGan:
        """The generator."""
        return OfGan(self._network)

    def previews(self) -> "list[tuple[str, GanInversion]]":
        """The inverted images, and the strategy as it is."""
        plain = self.params.model_copy(update={"noise_std": 0.0, "interpolation": 0.0})
        return [("GAN inversion", GanInversion(plain, self.material)), ("perturbed", self)]  # type: ignore[arg-type]


def learned_latents(
    network: FrozenNetwork, real: ImageSetReader, params: GanInversionParams
) -> EmbeddingBank:
    """A latent for every image, as a bank of embeddings [N, 1, Z]; finished parts are used again."""
    settings = params.model_dump(include=set(LatentSettings.model_fields))
    key = [code_digest("dinv.gan.latents"), network.digest, settings]

    # In the order of ids, so that partners do not depend on that of the image set.
    order = sorted(range(len(real)), key=lambda row: real.ids[row])

    def digests(rows: Sequence[int]) -> list[str]:
        return real.take([order[row] for row in rows]).digests(key)

    def task(rows: Sequence[int]) -> LatentTask:
        images = real.take([order[row] for row in rows])
        return LatentTask(images.images, images.labels, images.ids)

    plan = Plan("gan latents", len(real), PART_SIZE, digests, task, "step", params.num_inversion_steps)
    execution = ExecutionParams.here()
    worker = partial(LatentWorker, network.place, params, execution.micro_batch)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "latents"
        run_parts(plan, PartStore("gan_latents"), EMBEDDINGS, worker, execution, folder)
        return load_bank(folder)


@dataclass(frozen=True)
class LatentTask:
    """uint8 images [B, H, W, C], int64 labels [B], B ids."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: list[str]


class LatentWorker:
    """Task -> bytes of an embedding part whose training loss is the error of the inversion."""

    def __init__(self, folder: Path, params: GanInversionParams, micro_batch: int):
        self.gan, self.params, self.batch = load_gan(folder, resolve_device("auto")), params, micro_batch

    def compute(self, task: LatentTask, advance: Callable[[int], None]) -> bytes:
        """Find the latents."""
        banks = [self._together(task, rows, advance) for rows in batches(len(task.ids), self.batch)]
        return to_bytes(lambda path: save_bank(concatenate(banks), path))

    def _together(self, task: LatentTask, rows: slice, advance: Callable[[int], None]) -> EmbeddingBank:
        G, device, ids = self.gan.generator, self.gan.device, task.ids[rows]
        pixels = convert_batch(task.images[rows], G.side, G.num_channels)
        x, y = to_floats(pixels).to(device), torch.from_numpy(task.labels[rows])
        z, error = invert_latents(G, x, y.to(device), ids, self.params, advance)
        visits = torch.tensor([self.params.num_inversion_steps])
        none = torch.zeros(0, dtype=torch.int64)
        return EmbeddingBank(z[:, None], y, ids, visits, error[None], none, torch.zeros(0, len(ids)))
