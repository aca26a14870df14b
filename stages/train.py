"""Train one arm's classifiers, one per seed.

python -m stages.train --arm synthetic
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dinv.classify.store import save_classifier
from dinv.classify.train import LabelledImages, pixel_statistics, train_classifier
from dinv.config import ARMS, ExecutionParams, TrainParams
from dinv.data.image_set import ImageSet, load_image_set
from dinv.execution.device import resolve_device
from dinv.execution.parts import Part, PartStore, collect, run_parts
from dinv.files import bytes_digest, digest_of
from stages.runner import run

SOURCES = {
    "real": ("data/real/train",),
    "reconstruction": ("data/reconstructions",),
    "synthetic": ("data/generated",),
    "mixed": ("data/real/train", "data/generated"),
}


def main(train: TrainParams, execution: ExecutionParams, code_digest: str, arm: str) -> None:
    sources = [load_image_set(Path(folder)) for folder in SOURCES[arm]]
    real = load_image_set(Path("data/real/train"))
    settings = train.model_dump(exclude={"seeds"})
    content = [bytes_digest(s.images.tobytes(), s.labels.tobytes()) for s in (real, *sources)]
    key = [code_digest, settings, content]
    num_images = train.num_steps * train.batch_size
    parts = [Part(f"{arm}, seed {seed}", digest_of([*key, seed]), num_images) for seed in train.seeds]
    device = resolve_device(execution.device)
    compute = trainer(sources, real, train, device)
    paths = run_parts(PartStore("train"), parts, compute)
    collect(paths, Path("data/classifiers") / arm, ".safetensors")


def trainer(
    sources: Sequence[ImageSet], real: ImageSet, params: TrainParams, device: torch.device
) -> Callable[[int, Callable[[int], None]], Callable[[Path], None]]:
    statistics = pixel_statistics(real.tensor())
    on_device = [
        LabelledImages(s.tensor().to(device), torch.from_numpy(s.labels).to(device)) for s in sources
    ]

    def compute(i: int, advance: Callable[[int], None]) -> Callable[[Path], None]:
        num_classes, seed = len(real.class_names), params.seeds[i]
        result = train_classifier(on_device, num_classes, statistics, params, seed, advance)
        return lambda path: save_classifier(result, params, seed, path)

    return compute


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, required=True)
    run("train", main, arm=parser.parse_args().arm)
