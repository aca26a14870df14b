"""Step 2 of remaking the bundled model: train the image encoder that conditions its UNet, without labels.

Contrastive learning (SimCLR, Chen et al. 2020): two distorted copies of an image get similar
features, copies of different images dissimilar ones. What survives the distortions is what kind of
thing is shown, so neighbouring embeddings mean images of the same kind and noise on an embedding
changes details first. The encoder is needed by the next step only and does not ship.

    python models/pretrain_encoder.py --images train-images-idx3-ubyte.gz --output models/fashion-ldm
"""

import torch
import torch.nn.functional as F
from pretraining import load_pretraining_images, mixed_precision, parse_arguments, train
from torch import nn

NUM_TOKENS, WIDTH = 5, 128
TEMPERATURE = 0.2


class ImageTokens(nn.Module):
    """Image [B, 1, 32, 32] -> condition tokens [B, K, D], each element standardised over the data."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out, stride in ((1, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 1), (128, 128, 2)):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        features = NUM_TOKENS * WIDTH
        standardise = nn.BatchNorm1d(features, affine=False)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, features), standardise)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).float().view(-1, NUM_TOKENS, WIDTH)


class Contrastive(nn.Module):
    """The encoder and the projection that the contrastive loss looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageTokens()
        self.projection = nn.Sequential(
            nn.ReLU(),
            nn.Linear(NUM_TOKENS * WIDTH, 256, bias=False),
            nn.BatchNorm1d(256),
            nn.ReLU(),
            nn.Linear(256, 128),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projection(self.encoder(images).flatten(1)).float(), dim=1)


def distort(images: torch.Tensor) -> torch.Tensor:
    """Random rotation, scale per axis, shift, flip, gamma, brightness and an erased patch."""
    n = len(images)
    pixels = (warp(images, n) + 1) / 2
    gamma, brightness = torch.exp(0.4 * torch.randn(n, 1, 1, 1)), torch.exp(0.3 * torch.randn(n, 1, 1, 1))
    pixels = (pixels.clamp_min(0) + 1e-4) ** gamma * brightness
    return erase(pixels, n).clamp(0, 1) * 2 - 1


def warp(images: torch.Tensor, n: int) -> torch.Tensor:
    angle, (sx, sy) = 0.15 * torch.randn(n), 1 + 0.15 * torch.randn(2, n)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * sx * angle.cos(), -sy * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = flip * sx * angle.sin(), sy * angle.cos()
    theta[:, :, 2] = 0.1 * torch.randn(n, 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def erase(pixels: torch.Tensor, n: int) -> torch.Tensor:
    """A square of 4 to 12 pixels of one random grey, in 60 % of the images."""
    side = pixels.shape[-1]
    centre = side * torch.rand(2, n, 1, 1)
    half = (4 + 8 * torch.rand(n, 1, 1)) / 2 * (torch.rand(n, 1, 1) < 0.6)
    along = torch.arange(side)
    inside = ((along[:, None] - centre[0]).abs() < half) & ((along - centre[1]).abs() < half)
    return torch.where(inside[:, None], torch.rand(n, 1, 1, 1), pixels)


def contrastive_loss(z: torch.Tensor) -> torch.Tensor:
    """NT-Xent of unit vectors [2 B, D]; row i and row i + B show the same image."""
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similarity, torch.arange(len(z)).roll(len(z) // 2))


def main() -> None:
    args = parse_arguments(__doc__, steps=1000, batch_size=256, lr=2e-3)
    torch.manual_seed(0)
    images = load_pretraining_images(args.images)
    model = Contrastive().to(memory_format=torch.channels_last)

    def loss_of(step: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views = torch.cat([distort(images[ids]), distort(images[ids])])
        with mixed_precision():
            z = model(views.contiguous(memory_format=torch.channels_last))
        loss = contrastive_loss(z)
        return loss, loss.detach()

    train(model, loss_of, len(images), "encoder", args)


if __name__ == "__main__":
    main()
