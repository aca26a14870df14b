"""Bring the labelled task and the model's identity into the project.

python -m stages.download
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from dinv.diffusion.loading import fetch_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.files import write_json
from dinv.images.image_set import ROWS_PER_FILE, ImageSet, save_chunks
from dinv.sources.params import DataParams
from dinv.sources.task import Split, load_task
from stages.frozen_model import RECORD
from stages.runner import run


def main(data: DataParams, model: ModelParams) -> None:
    folder = fetch_model(model)
    task = load_task(data)
    for split in ("train", "val", "test"):
        images: Split = getattr(task, split)
        with tqdm(total=len(images), desc=split, unit="image") as bar:
            save_chunks(counted(images.chunks(ROWS_PER_FILE), bar.update), Path("data/real") / split)
    identity = {"path": model.path, "revision": model.revision, "sha256": model_digest(folder)}
    write_json(RECORD, identity)


def counted(chunks: Iterable[ImageSet], advance: Callable[[int], object]) -> Iterator[ImageSet]:
    """Pass chunks on, telling how many images are done."""
    for chunk in chunks:
        yield chunk
        advance(len(chunk))


if __name__ == "__main__":
    run("download", main)
