"""Classifier training: ours against PIL transforms in a DataLoader, in one process.

python benchmarks/train.py
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from common import compare, machine, make_parser
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip, ToTensor

from dinv.classify.architectures import ARCHITECTURES
from dinv.classify.base import LabelledImages, TrainingSet
from dinv.classify.cnn import Cnn, CnnParams, pixel_statistics
from dinv.execution.device import resolve_device
from dinv.images.image_set import ImageSet
from dinv.params import load_params
from dinv.sources.task import load_task


class Pictures(Dataset[tuple[torch.Tensor, int]]):
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


def reference(images: ImageSet, params: CnnParams, device: torch.device) -> None:
    """Float32, shuffled DataLoader with two workers, SGD."""
    size, channels = images.images.shape[2:]
    network = ARCHITECTURES[params.architecture](channels, len(images.class_names), size).to(device)
    optimizer = torch.optim.SGD(network.parameters(), params.lr, params.momentum, weight_decay=5e-4)
    data = Pictures(images, params.num_steps * params.batch_size)
    for batch, labels in DataLoader(data, params.batch_size, shuffle=True, num_workers=2):
        loss = F.cross_entropy(network(batch.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, runs=3)
    parser.add_argument("--block", default="cnn", help="block of train in params.yaml")
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args(arguments)
    steps, runs = (3, 1) if args.tiny else (args.steps, args.runs)
    params = load_params(args.params)
    block = params.train[args.block]
    assert isinstance(block, CnnParams)
    settings = block.model_copy(
        update={"num_steps": steps, "warmup_steps": min(block.warmup_steps, steps - 1)}
    )
    device = resolve_device(params.execution.device)
    train = load_task(params.data).train.load()
    targets = torch.from_numpy(np.eye(len(train.class_names), dtype=np.float32)[train.labels])
    real = LabelledImages(train.tensor().to(device), targets)
    print(machine(device))
    images = steps * settings.batch_size
    compare(
        "time per image",
        lambda: reference(train, settings, device),
        lambda: Cnn.fit(TrainingSet([real], real), settings, 0, device, lambda n: None),
        (images, images),
        runs,
        device,
    )


if __name__ == "__main__":
    main()
