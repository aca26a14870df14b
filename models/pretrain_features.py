"""Train the network whose features compare image sets, with the labels of the pre-training images.

    python models/pretrain_features.py --images train-images-idx3-ubyte.gz \
        --labels train-labels-idx1-ubyte.gz --output models/fashion-features
"""

import gzip
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from pretraining import (
    FIRST_PRETRAINING_IMAGE,
    argument_parser,
    load_pretraining_images,
    mixed_precision,
    train,
)
from safetensors.torch import save_file

from dinv.features.network import FeatureNetwork

SHIFT = 3  # pixels


def load_labels(path: Path) -> torch.Tensor:
    """Labels of the pre-training images, int64 [N]."""
    with gzip.open(path) as file:
        raw = bytearray(file.read()[8:])
    return torch.frombuffer(raw, dtype=torch.uint8)[FIRST_PRETRAINING_IMAGE:].long()


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror half of the images; shift the batch by up to 3 pixels."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    down, right = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    padded = F.pad(mirrored, (SHIFT,) * 4, value=-1.0)
    side = images.shape[-1]
    return padded[:, :, down : down + side, right : right + side]


def main() -> None:
    parser = argument_parser(__doc__, steps=2500, batch_size=128, lr=2e-3)
    parser.add_argument("--labels", type=Path, required=True, help="idx1 file of the train split")
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = load_pretraining_images(args.images), load_labels(args.labels)
    network = FeatureNetwork(int(labels.max()) + 1).to(memory_format=torch.channels_last)

    def loss_of(step: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with mixed_precision():
            logits = network.head(network(augment(images[ids])))
        loss = F.cross_entropy(logits.float(), labels[ids])
        return loss, loss.detach()

    train(network, loss_of, len(images), "features", args)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "config.json").write_text(json.dumps({"num_classes": network.head.out_features}) + "\n")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, args.output / "model.safetensors")


if __name__ == "__main__":
    main()
