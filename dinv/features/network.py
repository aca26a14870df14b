"""The small feature networks that ship with dinv: layout, and reading their folders."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.ops import Conv2dNormActivation

from dinv.errors import UserError

IMAGE_SIZE = 32
CHANNELS = (32, 64, 64, 128, 128)
STRIDES = (1, 2, 1, 2, 1)  # unless its config says otherwise
NUM_FEATURES = CHANNELS[-1]


class FeatureNetwork(nn.Module):
    """Images in [-1, 1], [B, C, 32, 32] -> features [B, 128]: 3x3 convolutions, averaged.

    `head` maps features to the classes it was trained with; measuring does not use it, and a network that was
    trained without labels, num_classes 0, has none.
    """

    def __init__(self, num_classes: int, num_channels: int = 1, strides: Sequence[int] = STRIDES):
        super().__init__()
        self.num_classes, self.num_channels, self.strides = num_classes, num_channels, tuple(strides)
        sides = zip((num_channels, *CHANNELS), CHANNELS, strict=False)
        layers = [
            Conv2dNormActivation(c_in, c_out, 3, stride=stride)
            for (c_in, c_out), stride in zip(sides, strides, strict=True)
        ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if num_classes:
            self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        return self.body(images)


def load_network(folder: Path) -> FeatureNetwork:
    """Read config.json and model.safetensors; raises UserError when they are missing or damaged."""
    try:
        config = json.loads((folder / "config.json").read_text())
        strides = [int(stride) for stride in config.get("strides", STRIDES)]
        network = FeatureNetwork(int(config["num_classes"]), int(config.get("num_channels", 1)), strides)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{folder}: not a feature network of dinv ({reason}); restore the folder") from error
    return network.float().eval()
