"""Generate images from perturbed embeddings, reconstruct the real ones, and draw the grid.

python -m stages.generate
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.config import ExecutionParams, GenerateParams, ModelParams
from dinv.data.grid import labelled_grid
from dinv.data.image_set import ImageSet, batches, load_image_set, save_image_set, write_parquet
from dinv.data.resize import convert_batch
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.parts import Part, PartStore, collect, run_parts
from dinv.files import atomic_write, digest_of
from dinv.generation.diffusion_inversion import DiffusionInversion
from dinv.generation.reconstruction import reconstruct
from dinv.generation.strategy import Draw
from dinv.inversion.bank import EmbeddingBank, load_bank
from stages.frozen_model import open_model
from stages.runner import run

PART_SIZE = 200  # images; a constant of the format, not a setting
GRID_COLUMNS = 10


def main(model: ModelParams, generate: GenerateParams, execution: ExecutionParams, code_digest: str) -> None:
    real, bank = load_image_set(Path("data/real/train")), load_bank(Path("data/embeddings"))
    ldm, model_sha = open_model(model, execution)
    strategy = DiffusionInversion(ldm, bank, generate)
    key = [code_digest, model_sha, model.dtype, model.resolution]
    generate_images(strategy, real, key, execution.micro_batch)
    reconstructions = reconstruct_all(ldm, real, execution.micro_batch)
    save_image_set(reconstructions, Path("data/reconstructions"))
    grid = labelled_grid(grid_rows(ldm, bank, generate, real, reconstructions))
    with atomic_write(Path("data/grid.png")) as temporary:
        grid.save(temporary, format="PNG")


def generate_images(
    strategy: DiffusionInversion, real: ImageSet, key: list[object], micro_batch: int
) -> None:
    plan = strategy.plan()
    chunks = [plan[rows] for rows in batches(len(plan), PART_SIZE)]
    parts = [
        Part(f"generate part {i}", digest_of([*key, strategy.fingerprint(chunk)]), len(chunk))
        for i, chunk in enumerate(chunks)
    ]
    compute = renderer(strategy, chunks, real, micro_batch)
    paths = run_parts(PartStore("generate"), parts, compute)
    collect(paths, Path("data/generated"), ".parquet")


def renderer(
    strategy: DiffusionInversion, chunks: list[list[Draw]], real: ImageSet, micro_batch: int
) -> Callable[[int, Callable[[int], None]], Callable[[Path], None]]:
    def compute(i: int, advance: Callable[[int], None]) -> Callable[[Path], None]:
        rendered = []
        for rows in batches(len(chunks[i]), micro_batch):
            rendered.append(strategy.render(chunks[i][rows]))
            advance(len(rendered[-1]))
        images = as_image_set(torch.cat(rendered), strategy, chunks[i], real)
        return lambda path: write_parquet(images, path)

    return compute


def as_image_set(
    images: torch.Tensor, strategy: DiffusionInversion, draws: list[Draw], real: ImageSet
) -> ImageSet:
    """Rendered images in the form of the real ones, labelled like the image they come from."""
    labels = strategy.bank.labels[[d.row for d in draws]].numpy()
    ids = [f"{strategy.bank.ids[d.row]}#{d.variant}" for d in draws]
    pixels = like(images.numpy(), real)
    return ImageSet(pixels, labels, ids, real.class_names, strategy.provenance(draws))


def like(images: NDArray[np.uint8], real: ImageSet) -> NDArray[np.uint8]:
    return convert_batch(images, real.images.shape[1], real.images.shape[3])


def reconstruct_all(ldm: LatentDiffusion, real: ImageSet, micro_batch: int) -> ImageSet:
    pixels = convert_batch(real.images, ldm.params.resolution, real.images.shape[3])
    images = torch.from_numpy(pixels)
    parts = [reconstruct(ldm, images[rows]) for rows in batches(len(real), micro_batch)]
    ids = [f"{i}#vae" for i in real.ids]
    provenance = {"source_id": list(real.ids)}
    pixels = like(torch.cat(parts).numpy(), real)
    return ImageSet(pixels, real.labels, ids, real.class_names, provenance)


def grid_rows(
    ldm: LatentDiffusion,
    bank: EmbeddingBank,
    params: GenerateParams,
    real: ImageSet,
    reconstructions: ImageSet,
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Real, VAE only, then rising lambda without and with guidance; one column per class."""
    rows = [int(np.flatnonzero(real.labels == k)[0]) for k in np.unique(real.labels)][:GRID_COLUMNS]
    grid = [("real", real.images[rows]), ("VAE only", reconstructions.images[rows])]
    for scale in (1.0, 2.0):
        for factor in (0.0, 1.0, 2.0) if scale == 1 else (0.0, 1.0):
            lam = round(factor * params.noise_std, 6)
            a = params.interpolation if factor else 0.0
            update = {"noise_std": lam, "guidance_scale": scale, "interpolation": a}
            strategy = DiffusionInversion(ldm, bank, params.model_copy(update=update))
            by_row = {draw.row: draw for draw in strategy.plan() if draw.variant == 0}
            images = strategy.render([by_row[row] for row in rows]).numpy()
            grid.append((f"lambda {lam:g}, alpha {a:g}, s {scale:g}", like(images, real)))
    return grid


if __name__ == "__main__":
    run("generate", main)
