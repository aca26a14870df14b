"""Images made when they are asked for, against reading stored ones: a shuffled pass over all of them.

With the model of params.yaml and random embeddings: they do not change the time. The first pass makes the
images, all later ones read what the first has made, from a disk that is warm, as stored images are.

    python benchmarks/on_demand.py
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from common import bundled, compare, machine, make_parser, seconds
from ruamel.yaml import YAML
from torch.utils.data import DataLoader

from dinv.images.image_set import ImageSet, ImageSetReader, save_image_set
from dinv.inversion.bank import EmbeddingBank, bank_statistics, save_bank, save_statistics
from dinv.on_demand import GeneratedImages
from dinv.params import load_params, read_yaml

STORED, LEARNED = Path("data/generated/inversion"), Path("data/learned/embeddings")
BATCH = 64


def write_project(params_file: Path, folder: Path, num_images: int) -> None:
    """All that GeneratedImages reads: parameters, real images, random embeddings of their shape."""
    raw = read_yaml(params_file)
    params = load_params(params_file)
    model, train = bundled(params, None, num_images)
    raw["model"]["path"] = str(Path(params.model.path).absolute())
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(raw, file)
    for name in ("train", "train_model"):
        save_image_set(train, folder / "data/real" / name)
    n, visits = len(train), torch.tensor([1])
    c, loss, labels = torch.randn(n, 5, model.width), torch.zeros(1, n), torch.from_numpy(train.labels)
    bank = EmbeddingBank(c, labels, train.ids, visits, loss, visits.clone(), loss.clone())
    (folder / LEARNED).mkdir(parents=True)
    save_bank(bank, folder / LEARNED / "part-00000.safetensors")
    save_statistics(bank_statistics([bank], len(train.class_names)), folder / LEARNED)


def store(images: GeneratedImages) -> None:
    """The same images as stage generate stores them."""
    items = images.__getitems__(range(len(images)))
    pixels = torch.stack([image for image, _ in items]).permute(0, 2, 3, 1).numpy()
    ids = [draw.id for draw in images.strategy.draws(range(len(images)))]
    save_image_set(ImageSet(pixels, images.labels.numpy(), ids, images.class_names), STORED)


def shuffled(n: int) -> Iterator[list[int]]:
    """Batches of a random order, the same each time."""
    order = np.random.default_rng(0).permutation(n)
    return (order[i : i + BATCH].tolist() for i in range(0, n, BATCH))


def read_stored() -> None:
    """Batch by batch, after all Parquet files were decoded: random rows lie in all of their groups."""
    images = ImageSetReader(STORED).take(range(len(ImageSetReader(STORED)))).tensor()
    for rows in shuffled(len(images)):
        images[rows].clone()


def read_again(images: GeneratedImages) -> None:
    """Batch by batch, out of what was made before."""
    for _ in DataLoader(images, batch_sampler=list(shuffled(len(images)))):
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, runs=5)
    parser.add_argument("--images", type=int, default=100, help="real images; 10 are made of each")
    args = parser.parse_args(arguments)
    num_images, runs = (20, 1) if args.tiny else (args.images, args.runs)
    source, device = args.params.absolute(), torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        write_project(source, Path(temporary), num_images)
        with contextlib.chdir(temporary):
            images = GeneratedImages("inversion", cache="cache")
            print(f"{machine(device)}; {len(images)} images, groups of {images.group}")
            first = seconds(lambda: read_again(images), device) / len(images)
            store(images)
            sizes = (len(images), len(images))
            stored, _ = compare(
                "time per image, made before", read_stored, lambda: read_again(images), sizes, runs, device
            )
            print(f"time per image, first pass: {1000 * first:.3g} ms, {first / stored:.0f} times as long")


if __name__ == "__main__":
    main()
