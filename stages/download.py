"""Bring the labelled task and the model's identity into the project.

python -m stages.download
"""

from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from dinv.diffusion.loading import fetch_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.files import write_json
from dinv.images.fingerprint import write_fingerprints
from dinv.images.image_set import ROWS_PER_GROUP, ImageSetReader, ImageSetWriter
from dinv.sources.params import DataParams
from dinv.sources.task import Split, load_task
from stages.frozen_model import RECORD
from stages.runner import run

FOLDER = Path("data/real")
FINGERPRINTS = Path("data/fingerprints.txt")  # of held-out images: a strategy may refuse copies of them


def main(data: DataParams, model: ModelParams) -> None:
    folder = fetch_model(model)
    task = load_task(data)
    both = {FOLDER / "train": data.resolution, FOLDER / "train_model": model.resolution}
    write(task.train, both, "train")
    write(task.val, {FOLDER / "val": data.resolution}, "val")
    write(task.test, {FOLDER / "test": data.resolution}, "test")
    readers = [ImageSetReader(FOLDER / name) for name in ("val", "test")]
    pieces = (piece.images for reader in readers for piece in reader.pieces(range(len(reader))))
    write_fingerprints(pieces, FINGERPRINTS)
    write_json(RECORD, {"path": model.path, "sha256": model_digest(folder)})


def write(split: Split, sides: dict[Path, int], name: str) -> None:
    """Write a split into each folder, at that folder's side in pixels; memory holds one row group."""
    with ExitStack() as stack, tqdm(total=len(split), desc=name, unit="image") as bar:
        writers = [stack.enter_context(ImageSetWriter(folder)) for folder in sides]
        for images in split.chunks_at(list(sides.values()), ROWS_PER_GROUP):
            for writer, sized in zip(writers, images, strict=True):
                writer.add(sized)
            bar.update(len(images[0]))


if __name__ == "__main__":
    run("download", main)
