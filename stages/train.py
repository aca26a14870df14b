"""Train one arm's classifiers, one per seed.

python -m stages.train --arm synthetic
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from dinv.classify.store import save_classifier
from dinv.classify.train import LabelledImages, pixel_statistics, train_classifier
from dinv.config import ARMS, ExecutionParams, TrainParams
from dinv.data.image_set import ImageSet, load_image_set
from dinv.execution.device import resolve_device
from dinv.execution.parts import FILES, PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
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
    plan = make_plan(arm, train, [code_digest, settings, content])
    worker = partial(TrainWorker, sources, real, train, resolve_device(execution.device))
    here = execution.model_copy(update={"backend": "local"})  # the images stay on this machine
    run_parts(plan, PartStore("train"), FILES, worker, here, Path("data/classifiers") / arm)


def make_plan(arm: str, params: TrainParams, key: list[object]) -> Plan:
    """One part per seed; its task is the seed."""

    def digests(rows: Sequence[int]) -> list[str]:
        return [digest_of([*key, params.seeds[row]]) for row in rows]

    def seed(rows: Sequence[int]) -> int:
        return params.seeds[rows[0]]

    num_images = params.num_steps * params.batch_size
    return Plan(f"{arm}, classifier", len(params.seeds), 1, digests, seed, "image", num_images)


class TrainWorker:
    """Seed -> bytes of a classifier file."""

    def __init__(
        self, sources: Sequence[ImageSet], real: ImageSet, params: TrainParams, device: torch.device
    ):
        self.params, self.num_classes = params, len(real.class_names)
        self.statistics = pixel_statistics(real.tensor())
        self.sources = [
            LabelledImages(s.tensor().to(device), torch.from_numpy(s.labels).to(device)) for s in sources
        ]

    def compute(self, seed: int, advance: Callable[[int], None]) -> bytes:
        """Train one classifier."""
        result = train_classifier(self.sources, self.num_classes, self.statistics, self.params, seed, advance)
        return to_bytes(lambda path: save_classifier(result, self.params, seed, path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, required=True)
    run("train", main, arm=parser.parse_args().arm)
