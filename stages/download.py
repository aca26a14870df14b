"""Bring the labelled task and the model's identity into the project.

python -m stages.download
"""

from pathlib import Path

from dinv.config import DataParams, ModelParams
from dinv.data.image_set import save_image_set
from dinv.data.task import load_task
from dinv.diffusion.loading import fetch_model, model_digest
from dinv.files import write_json
from stages.frozen_model import RECORD
from stages.runner import run


def main(data: DataParams, model: ModelParams) -> None:
    folder = fetch_model(model)
    task = load_task(data)
    for split in ("train", "val", "test"):
        save_image_set(getattr(task, split), Path("data/real") / split)
    identity = {"path": model.path, "revision": model.revision, "sha256": model_digest(folder)}
    write_json(RECORD, identity)


if __name__ == "__main__":
    run("download", main)
