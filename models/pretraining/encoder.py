"""Step 2 of remaking a bundled model: train the image encoder that conditions its UNet, without labels.

Contrastive learning (SimCLR, Chen et al. 2020): two distorted copies of an image get similar
features, copies of different images dissimilar ones. What survives the distortions is what kind of
thing is shown, so neighbouring embeddings mean images of the same kind and noise on an embedding
changes details first. The next step needs the encoder. Its convolutions are written to encoder/, as a
network of features that has seen what the generator has seen, and no label.

    python -m models.pretraining.encoder --domain models/domains/satellite.yaml --images pretrain.parquet \
        --output models/satellite-ldm
"""

import torch
import torch.nn.functional as F
from torch import nn

from dinv.features.network import CHANNELS, FeatureNetwork
from models.pretraining.data import load_images
from models.pretraining.domain import load_domain
from models.pretraining.features import save
from models.pretraining.loop import argument_parser, mixed_precision, settings, train
from models.pretraining.views import random_views

NUM_TOKENS, WIDTH = 5, 128
STRIDES = (2, 1, 2, 1, 2)
TEMPERATURE = 0.2


class ImageTokens(nn.Module):
    """Image [B, C, 32, 32] -> condition tokens [B, K, D], each element standardised over the data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, stride in zip((channels, *CHANNELS), CHANNELS, STRIDES, strict=False):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        features = NUM_TOKENS * WIDTH
        standardise = nn.BatchNorm1d(features, affine=False)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, features), standardise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).float().view(-1, NUM_TOKENS, WIDTH)


class Contrastive(nn.Module):
    """The encoder and the projection that the contrastive loss looks at."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = ImageTokens(channels)
        self.projection = nn.Sequential(
            nn.ReLU(),
            nn.Linear(NUM_TOKENS * WIDTH, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 128),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projection(self.encoder(images).flatten(1)).float(), dim=1)


def contrastive_loss(z: torch.Tensor) -> torch.Tensor:
    """NT-Xent of unit vectors [2 B, D]; row i and row i + B show the same image."""
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))


def pooled(encoder: ImageTokens, channels: int) -> FeatureNetwork:
    """Its convolutions, whose output is averaged over positions: what dinv calls a convnet."""
    network = FeatureNetwork(0, channels, STRIDES)
    own = list(encoder.body)[: 3 * len(CHANNELS)]
    for block, first in zip(network.body, range(0, len(own), 3), strict=False):
        convolution, normalisation, _ = block.children()
        convolution.load_state_dict(own[first].state_dict())
        normalisation.load_state_dict(own[first + 1].state_dict())
    return network.eval()


def main() -> None:
    args = argument_parser(__doc__).parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    images = load_images(args.images, domain)
    model = Contrastive(domain.channels).to(memory_format=torch.channels_last)

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views = torch.cat([random_views(images[ids], domain.views) for _ in range(2)])
        with mixed_precision():
            z = model(views.contiguous(memory_format=torch.channels_last))
        loss = contrastive_loss(z)
        return loss, loss.detach()

    model = train(model, loss_of, len(images), "encoder", settings(domain.encoder, args), args)
    save(pooled(model.encoder, domain.channels), args.output / "encoder")


if __name__ == "__main__":
    main()
