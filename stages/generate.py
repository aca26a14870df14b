"""Generate images from perturbed embeddings, reconstruct the real ones, and draw the grid.

python -m stages.generate
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinv.diffusion.params import ModelParams
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import PartStore, Plan
from dinv.execution.run import run_parts
from dinv.files import atomic_write, digest_of
from dinv.images.grid import labelled_grid
from dinv.images.image_set import IMAGES, ImageSetReader
from dinv.images.resize import convert_batch
from dinv.inversion.bank import BankReader, BankStatistics, load_statistics
from dinv.strategies.diffusion_inversion import DiffusionInversion
from dinv.strategies.params import GenerateParams
from dinv.strategies.strategy import Draw
from dinv.strategies.worker import ReconstructTask, ReconstructWorker, RenderTask, RenderWorker, Table
from stages.frozen_model import FrozenModel
from stages.runner import run

PART_SIZE = 200  # images; a constant of the format, not a setting
GRID_COLUMNS = 10
EMBEDDINGS = Path("data/embeddings")


def main(model: ModelParams, generate: GenerateParams, execution: ExecutionParams, code_digest: str) -> None:
    real, bank = ImageSetReader(Path("data/real/train")), BankReader(EMBEDDINGS)
    statistics = load_statistics(EMBEDDINGS / "statistics.safetensors")
    frozen = FrozenModel(model, execution)
    strategy = make_strategy(bank, statistics, generate, frozen)
    key = [code_digest, frozen.digest, model.dtype, model.resolution]
    opened = (frozen.opener, execution.micro_batch)
    for plan, worker, name in (
        (generation_plan(strategy, real, key), partial(RenderWorker, *opened), "generated"),
        (reconstruction_plan(real, key), partial(ReconstructWorker, *opened), "reconstructions"),
    ):
        run_parts(plan, PartStore(name), IMAGES, worker, execution, Path("data") / name)
    grid = labelled_grid(grid_rows(bank, statistics, generate, real, frozen))
    with atomic_write(Path("data/grid.png")) as temporary:
        grid.save(temporary, format="PNG")


def make_strategy(
    bank: BankReader, statistics: BankStatistics, params: GenerateParams, frozen: FrozenModel
) -> DiffusionInversion:
    """The strategy; the model is asked for the empty prompt only if guidance needs it."""
    needed = params.unconditional == "empty" and params.guidance_scale > 1
    empty = frozen.loaded.empty_prompt_embeds(bank.shape[0]) if needed else None
    return DiffusionInversion(bank, statistics, params, empty)


def generation_plan(strategy: DiffusionInversion, real: ImageSetReader, key: list[object]) -> Plan:
    """Every draw of the strategy."""

    def digests(indices: Sequence[int]) -> list[str]:
        return [digest_of([*key, f]) for f in strategy.fingerprints(strategy.draws(indices))]

    def task(indices: Sequence[int]) -> RenderTask:
        draws = strategy.draws(indices)
        return RenderTask(strategy.request(draws), generated_table(strategy, draws, real))

    return Plan("generate part", len(strategy), PART_SIZE, digests, task)


def generated_table(strategy: DiffusionInversion, draws: list[Draw], real: ImageSetReader) -> Table:
    """Generated images have the form of the real ones and the label of the one they come from."""
    labels = strategy.bank.labels[[d.row for d in draws]].numpy()
    ids = [f"{strategy.bank.ids[d.row]}#{d.variant}" for d in draws]
    return Table(real.shape, labels, ids, real.class_names, strategy.provenance(draws))


def reconstruction_plan(real: ImageSetReader, key: list[object]) -> Plan:
    """Every real image through the VAE only."""

    def digests(rows: Sequence[int]) -> list[str]:
        return real.take(rows).digests(key)

    def task(rows: Sequence[int]) -> ReconstructTask:
        part = real.take(rows)
        ids, provenance = [f"{i}#vae" for i in part.ids], {"source_id": list(part.ids)}
        return ReconstructTask(part.images, Table(real.shape, part.labels, ids, real.class_names, provenance))

    return Plan("reconstruct part", len(real), PART_SIZE, digests, task)


def grid_rows(
    bank: BankReader,
    statistics: BankStatistics,
    params: GenerateParams,
    real: ImageSetReader,
    frozen: FrozenModel,
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Real, VAE only, then rising lambda without and with guidance; one column per class."""
    rows = [int(np.flatnonzero(real.labels == k)[0]) for k in np.unique(real.labels)][:GRID_COLUMNS]
    grid = [("real", real.take(rows).images), ("VAE only", reconstructions(rows))]
    for scale in (1.0, 2.0):
        for factor in (0.0, 1.0, 2.0) if scale == 1 else (0.0, 1.0):
            lam = round(factor * params.noise_std, 6)
            a = params.interpolation if factor else 0.0
            update = {"noise_std": lam, "guidance_scale": scale, "interpolation": a}
            strategy = make_strategy(bank, statistics, params.model_copy(update=update), frozen)
            images = strategy.request(strategy.draws(rows)).render(frozen.loaded).numpy()
            like_real = convert_batch(images, real.shape[0], real.shape[2])
            grid.append((f"lambda {lam:g}, alpha {a:g}, s {scale:g}", like_real))
    return grid


def reconstructions(rows: Sequence[int]) -> NDArray[np.uint8]:
    return ImageSetReader(Path("data/reconstructions")).take(rows).images


if __name__ == "__main__":
    run("generate", main)
