r"""Train a network whose features compare image sets, with the labels of the pre-training images.

    python -m models.pretraining.features --domain models/domains/fashion.yaml \
        --images train-images-idx3-ubyte.gz --labels train-labels-idx1-ubyte.gz \
        --output models/fashion-features
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dinv.features.network import FeatureNetwork
from models.pretraining.data import load_images, load_labels
from models.pretraining.domain import Domain, load_domain, random_symmetries
from models.pretraining.loop import argument_parser, mixed_precision, settings, train

SHIFT = 3  # pixels


def augment(images: torch.Tensor, domain: Domain) -> torch.Tensor:
    """Mirror or turn as the domain allows; shift the batch by up to 3 pixels."""
    turned = random_symmetries(images, domain.symmetries)
    down, right = torch.randint(2 * SHIFT + 1, (2,)).tolist()
    if domain.views.border == "black":
        padded = F.pad(turned, (SHIFT,) * 4, value=-1.0)
    else:
        padded = F.pad(turned, (SHIFT,) * 4, mode="reflect")
    side = images.shape[-1]
    return padded[:, :, down : down + side, right : right + side]


def save(network: FeatureNetwork, output: Path) -> None:
    """Write config.json and float16 weights, as dinv.features reads them."""
    output.mkdir(parents=True, exist_ok=True)
    config = {name: getattr(network, name) for name in ("num_classes", "num_channels", "strides")}
    (output / "config.json").write_text(json.dumps(config) + "\n")
    weights = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, output / "model.safetensors")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--labels", type=Path, help="idx1 file; a Parquet file has its own")
    args = parser.parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    images, labels = load_images(args.images, domain), load_labels(args.labels or args.images, domain)
    network = FeatureNetwork(int(labels.max()) + 1, domain.channels).to(memory_format=torch.channels_last)

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with mixed_precision():
            logits = network.head(network(augment(images[ids], domain)))
        loss = F.cross_entropy(logits.float(), labels[ids])
        return loss, loss.detach()

    training = settings(domain.features, args)
    save(train(network, loss_of, len(images), "features", training, args), args.output)


if __name__ == "__main__":
    main()
