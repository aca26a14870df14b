"""The small labelled-feature network that ships with dinv: layout, and reading its folder."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.ops import Conv2dNormActivation

from dinv.errors import UserError

IMAGE_SIZE = 32
BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))  # channels and stride
NUM_FEATURES = 128


class FeatureNetwork(nn.Module):
    """Images in [-1, 1], [B, C, 32, 32] -> features [B, 128]: 3x3 convolutions, averaged.

    `head` maps features to the classes it was trained with; measuring does not use it.
    """

    def __init__(self, num_classes: int, num_channels: int = 1):
        super().__init__()
        self.num_channels = num_channels
        channels = [num_channels, *(c for c, _ in BLOCKS)]
        layers = [
            Conv2dNormActivation(c_in, c_out, 3, stride=stride)
            for c_in, (c_out, stride) in zip(channels, BLOCKS, strict=False)
        ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        return self.body(images)


def load_network(folder: Path) -> FeatureNetwork:
    """Read config.json and model.safetensors; raises UserError when they are missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_text())
        network = FeatureNetwork(int(config["num_classes"]), int(config.get("num_channels", 1)))
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{folder}: not a feature network of dinv ({reason}); restore the folder") from error
    return network.float().eval()
