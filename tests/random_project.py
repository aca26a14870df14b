"""A folder with all that stage generate reads, of random content: a tiny model, images, embeddings."""

from pathlib import Path

import numpy as np
import tiny
import torch
from project import SMALL
from ruamel.yaml import YAML

from dinv.diffusion.loading import model_digest
from dinv.files import write_json
from dinv.images.image_set import ImageSet, save_image_set
from dinv.inversion.bank import EmbeddingBank, bank_statistics, save_bank, save_statistics


def create(root: Path, model: Path, num_images: int = 6, **params: object) -> Path:
    """Two classes; parameters are written section__block__key=value."""
    raw = YAML(typ="safe").load((tiny.ROOT / "params.yaml").read_text())
    changes = {**SMALL, "model.path": str(model), **{k.replace("__", "."): v for k, v in params.items()}}
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[key] = value
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(raw, file)
    write_json(root / "data/model.json", {"path": str(model), "sha256": model_digest(model)})
    labels, ids = np.arange(num_images) % 2, [f"image {i}" for i in range(num_images)]
    images = ImageSet(tiny.random_images(num_images, channels=1), labels, ids, ["cat", "dog"])
    for name in ("train", "train_model"):
        save_image_set(images, root / "data/real" / name)
    save_embeddings(root / "data/learned/embeddings", labels, ids)
    return root


def save_embeddings(folder: Path, labels: np.ndarray, ids: list[str], seed: int = 0) -> None:
    """Random ones of 3 tokens, in place of those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    c = torch.randn(len(ids), 3, 16, generator=torch.Generator().manual_seed(seed))
    visits, loss = torch.tensor([1]), torch.zeros(1, len(ids))
    bank = EmbeddingBank(c, torch.from_numpy(labels), ids, visits, loss, visits.clone(), loss.clone())
    save_bank(bank, folder / "part-00000.safetensors")
    save_statistics(bank_statistics([bank], 2), folder)
