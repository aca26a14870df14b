"""Learn an embedding for every training image.

python -m stages.invert
"""

from collections.abc import Callable
from pathlib import Path

import torch

from dinv.config import ExecutionParams, InvertParams, ModelParams
from dinv.data.image_set import ImageSet, load_image_set
from dinv.data.resize import convert_batch
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.parts import Part, PartStore, collect, run_parts
from dinv.files import bytes_digest, digest_of
from dinv.inversion.bank import save_bank
from dinv.inversion.invert import invert as learn_embeddings
from stages.frozen_model import open_model
from stages.runner import run

PART_SIZE = 100  # images; a constant of the format, not a setting


def main(model: ModelParams, invert: InvertParams, execution: ExecutionParams, code_digest: str) -> None:
    images = load_image_set(Path("data/real/train"))
    ldm, model_sha = open_model(model, execution)
    slices = [images.take(range(i, min(i + PART_SIZE, len(images)))) for i in part_starts(images)]
    key = [code_digest, model_sha, model.dtype, model.resolution, invert.model_dump()]
    parts = [plan_part(i, part, key) for i, part in enumerate(slices)]
    compute = inverter(ldm, slices, invert, execution.micro_batch)
    paths = run_parts(PartStore("invert"), parts, compute, "visit", invert.num_visits)
    collect(paths, Path("data/embeddings"), ".safetensors")


def part_starts(images: ImageSet) -> range:
    return range(0, len(images), PART_SIZE)


def plan_part(index: int, images: ImageSet, key: list[object]) -> Part:
    content = bytes_digest(images.images.tobytes(), images.labels.tobytes())
    return Part(f"invert part {index}", digest_of([*key, content, images.ids]), len(images))


def inverter(
    ldm: LatentDiffusion, slices: list[ImageSet], params: InvertParams, micro_batch: int
) -> Callable[[int, Callable[[int], None]], Callable[[Path], None]]:
    def compute(i: int, advance: Callable[[int], None]) -> Callable[[Path], None]:
        part = slices[i]
        pixels = convert_batch(part.images, ldm.params.resolution, part.images.shape[3])
        labels = torch.from_numpy(part.labels)
        bank = learn_embeddings(ldm, torch.from_numpy(pixels), labels, part.ids, params, micro_batch, advance)
        return lambda path: save_bank(bank, path)

    return compute


if __name__ == "__main__":
    run("invert", main)
