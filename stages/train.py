"""Train one arm's classifiers, one per seed.

python -m stages.train --arm synthetic
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from dinv.classify.confidence import keep_confident, label_confidence
from dinv.classify.params import TrainParams
from dinv.classify.store import load_classifiers, save_classifier
from dinv.classify.train import LabelledImages, pixel_statistics, train_classifier
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.execution.parts import FILES, PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.files import bytes_digest, digest_of, file_digest
from dinv.images.image_set import ImageSet, load_image_set
from dinv.params import ARMS
from stages.runner import run

GENERATED = "data/generated"
SOURCES = {
    "real": ("data/real/train",),
    "reconstruction": ("data/reconstructions",),
    "synthetic": (GENERATED,),
    "mixed": ("data/real/train", GENERATED),
}
# What does not change an arm's classifiers, other than through the images that it is given.
MIXING = {"real_fraction", "mixing", "synthetic_loss_weight"}
NO_EFFECT = {
    "real": MIXING | {"min_confidence"},
    "reconstruction": MIXING | {"min_confidence"},
    "synthetic": MIXING | {"min_confidence"},
    "mixed": {"min_confidence"},
}


def main(train: TrainParams, execution: ExecutionParams, code_digest: str, arm: str) -> None:
    device = resolve_device(execution.device)
    real = load_image_set(Path("data/real/train"))
    sources = [load_source(folder, train, device) for folder in SOURCES[arm]]
    settings = train.model_dump(exclude={"seeds", *NO_EFFECT[arm]})
    content = [
        bytes_digest(s.images.tobytes(), s.labels.tobytes(), *origin_bytes(s)) for s in (real, *sources)
    ]
    weights = None if train.pretrained is None else pretrained_digest(Path(train.pretrained))
    plan = make_plan(arm, train, [code_digest, settings, content, weights])
    worker = partial(TrainWorker, sources, real, train, device)
    here = execution.model_copy(update={"backend": "local"})  # the images stay on this machine
    run_parts(plan, PartStore("train"), FILES, worker, here, Path("data/classifiers") / arm)


def load_source(folder: str, train: TrainParams, device: torch.device) -> ImageSet:
    """An image set, less the generated images that the real arm's classifiers doubt."""
    images = load_image_set(Path(folder))
    if folder != GENERATED or train.min_confidence == 0:
        return images
    teachers = [stored.classifier for stored in load_classifiers(Path("data/classifiers/real"))]
    kept = keep_confident(images, label_confidence(teachers, images, device), train.min_confidence)
    print(f"{len(kept)} of {len(images)} generated images have confidence {train.min_confidence} or more")
    return kept


def origin_bytes(images: ImageSet) -> list[bytes]:
    """Where the images come from, as bytes; nothing for real ones."""
    return [i.encode() for i in images.provenance.get("source_id", [])]


def pretrained_digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"train.pretrained = {str(path)!r}: no such file; correct it, or set it to null")
    return file_digest(path)


def origins(images: ImageSet, real: ImageSet) -> torch.Tensor | None:
    """Row of the real image that each was generated from, int64 [N]; None for real images."""
    rows = {i: row for row, i in enumerate(real.ids)}
    sources = images.provenance.get("source_id")
    return None if sources is None else torch.tensor([rows[i] for i in sources])


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
        self.num_images = sum(len(s) for s in sources)
        self.statistics = pixel_statistics(real.tensor())
        self.sources = [
            LabelledImages(
                s.tensor().to(device),
                torch.from_numpy(s.labels).to(device),
                origins(s, real),
                params.synthetic_loss_weight if i == 1 else 1.0,
            )
            for i, s in enumerate(sources)
        ]

    def compute(self, seed: int, advance: Callable[[int], None]) -> bytes:
        """Train one classifier."""
        result = train_classifier(self.sources, self.num_classes, self.statistics, self.params, seed, advance)
        return to_bytes(lambda path: save_classifier(result, self.params, seed, self.num_images, path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, required=True)
    run("train", main, arm=parser.parse_args().arm)
