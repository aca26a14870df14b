"""Classifier training: ours against PIL transforms in a DataLoader, in one process.

python benchmarks/train.py
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from common import compare, machine
from dinv.classify.params import TrainParams
from dinv.classify.train import LabelledImages, pixel_statistics, train_classifier
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from dinv.classify.architectures import ARCHITECTURES
from dinv.execution.device import resolve_device
from dinv.images.image_set import ImageSet
from dinv.params import load_params
from dinv.sources.task import load_task


class Pictures(Dataset):
    """PIL images with the usual transforms, as the authors' training script has them."""

    def __init__(self, images: ImageSet, length: int):
        self.pictures = [Image.fromarray(image.squeeze()) for image in images.images]
        self.labels, self.length = images.labels, length
        size = images.images.shape[1]
        mean, std = (s.tolist() for s in pixel_statistics(images.tensor()))
        self.transform = Compose(
            [RandomCrop(size, size // 8), RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        i %= len(self.pictures)
        return self.transform(self.pictures[i]), int(self.labels[i])


def reference(images: ImageSet, num_classes: int, params: TrainParams, device: torch.device) -> None:
    """Float32, shuffled DataLoader with two workers, SGD."""
    channels = images.images.shape[3]
    network = ARCHITECTURES[params.architecture](channels, num_classes, params.width).to(device)
    optimizer = torch.optim.SGD(network.parameters(), params.lr, params.momentum, weight_decay=5e-4)
    data = Pictures(images, params.num_steps * params.batch_size)
    for batch, labels in DataLoader(data, params.batch_size, shuffle=True, num_workers=2):
        loss = F.cross_entropy(network(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    params = load_params(args.params)
    device = resolve_device(params.execution.device)
    train = load_task(params.data).train.load()
    settings = params.train.model_copy(update={"num_steps": args.steps})
    source = LabelledImages(train.tensor().to(device), torch.from_numpy(train.labels).to(device))
    statistics, m = pixel_statistics(train.tensor()), len(train.class_names)
    print(machine(device))
    images = args.steps * settings.batch_size
    compare(
        "time per image",
        lambda: reference(train, m, settings, device),
        lambda: train_classifier([source], m, statistics, settings, 0),
        (images, images),
        args.runs,
        device,
    )


if __name__ == "__main__":
    main()
