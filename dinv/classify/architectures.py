"""Classifiers for small images. A new architecture is a function here and a line in the table."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import efficientnet_b0, mobilenet_v2, resnet18, shufflenet_v2_x0_5
from torchvision.models.vgg import cfgs, make_layers

from dinv.errors import UserError

SMALL = 64  # pixels up to which a first convolution keeps the resolution


def convnet3(num_channels: int, num_classes: int, image_size: int, width: int = 32) -> nn.Module:
    """ConvNet-3 of the data-set-distillation literature (Gidaris and Komodakis 2018): three blocks of `width`
    channels with 3x3 convolution, normalisation, ReLU, 2x2 average pooling; then a linear layer.

    Batch normalisation stands where distillation papers use instance normalisation, and the head
    averages over the remaining positions, so that any image size from 8 up works.
    """
    layers: list[nn.Module] = []
    for c_in in (num_channels, width, width):
        layers += [
            nn.Conv2d(c_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
        ]
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(width * 16, num_classes)]
    return nn.Sequential(*layers)


def small_image_resnet18(num_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-18, its stem by image size as in the paper's code:
    up to 64 pixels 3x3 stride 1; up to 128 pixels 7x7 stride 2; above, a max-pool besides.
    """
    model = resnet18(num_classes=num_classes)
    if image_size <= SMALL:
        model.conv1 = nn.Conv2d(num_channels, 64, 3, padding=1, bias=False)
    else:
        model.conv1 = nn.Conv2d(num_channels, 64, 7, stride=2, padding=3, bias=False)
    if image_size <= 128:
        model.maxpool = nn.Identity()
    return model


def vgg16(num_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """The convolutions of torchvision's VGG-16 with batch normalisation, averaged, and one linear layer.

    Images below 32 pixels are padded to 32 by the first convolution: five poolings follow.
    """
    features = make_layers(cfgs["D"], batch_norm=True)
    padding = 1 + max(0, (32 - image_size + 1) // 2)
    features[0] = nn.Conv2d(num_channels, 64, 3, padding=padding)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, num_classes))
    return nn.Sequential(OrderedDict(features=features, classifier=head))


def _first_convolution(num_channels: int, width: int, image_size: int) -> nn.Conv2d:
    """3x3 without bias; stride 1 for small images, else the stride 2 of the ImageNet networks."""
    stride = 1 if image_size <= SMALL else 2
    return nn.Conv2d(num_channels, width, 3, stride=stride, padding=1, bias=False)


def small_image_mobilenetv2(num_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's MobileNetV2."""
    model = mobilenet_v2(num_classes=num_classes)
    model.features[0][0] = _first_convolution(num_channels, 32, image_size)
    return model


def small_image_shufflenetv2(num_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's ShuffleNetV2 of half width, max-pool kept."""
    model = shufflenet_v2_x0_5(num_classes=num_classes)
    model.conv1[0] = _first_convolution(num_channels, 24, image_size)
    return model


def small_image_efficientnet_b0(num_channels: int, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's EfficientNet-B0, with its dropout and stochastic depth of 0.2."""
    model = efficientnet_b0(num_classes=num_classes)
    model.features[0][0] = _first_convolution(num_channels, 32, image_size)
    return model


ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "convnet3": convnet3,
    "convnet3_128": partial(convnet3, width=128),
    "resnet18": small_image_resnet18,
    "vgg16": vgg16,
    "mobilenetv2": small_image_mobilenetv2,
    "shufflenetv2": small_image_shufflenetv2,
    "efficientnet_b0": small_image_efficientnet_b0,
}
Architecture = Literal[
    "convnet3",
    "convnet3_128",
    "resnet18",
    "vgg16",
    "mobilenetv2",
    "shufflenetv2",
    "efficientnet_b0",
]


class Classifier(nn.Module):
    """An architecture behind the normalisation of its pixels: uint8 [B, C, H, W] -> logits [B, M].

    `mean` and `std` are per channel, of pixels in [0, 1].
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: nn.Module, mean: torch.Tensor, std: torch.Tensor):
        super().__init__()
        self.body = body
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of uint8 images."""
        pixels = (images.float() / 255 - self.mean) / self.std
        return self.body(pixels.contiguous(memory_format=torch.channels_last))


def create_classifier(
    architecture: str,
    num_channels: int,
    num_classes: int,
    image_size: int,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> Classifier:
    """Build a classifier with random weights from torch's global generator (fork it first)."""
    body = ARCHITECTURES[architecture](num_channels, num_classes, image_size)
    return Classifier(body, mean, std).to(memory_format=torch.channels_last)


def load_pretrained(body: nn.Module, path: Path) -> None:
    """Start from torchvision's weights of the same architecture, a safetensors file of its state dict.

    The first convolution and the last layer may differ, for they depend on the images and classes, and then
    keep their random weights; every other tensor must be there and fit.

    Raises:
        UserError: the file is missing or damaged, or holds another network.
    """
    stem = next(name for name, m in body.named_modules() if isinstance(m, nn.Conv2d))
    head = [name for name, m in body.named_modules() if isinstance(m, nn.Linear)][-1].split(".")[0]
    load_weights(body, path, "pretrained", (stem, head))


def load_weights(network: nn.Module, path: Path, parameter: str, may_differ: Sequence[str]) -> None:
    """Load a state dict from a safetensors file; modules of `may_differ` keep theirs where others do not fit.

    Raises:
        UserError: names `parameter`; the file is missing or damaged, or holds another network.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(
            f"{parameter} = {path.name!r}: cannot be read ({reason}); give a safetensors file"
        ) from error
    ours = network.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in ours and v.shape == ours[k].shape}
    others = (ours.keys() | tensors.keys()) - fitting.keys()
    wrong = sorted(k for k in others if not k.startswith(tuple(f"{name}." for name in may_differ)))
    if wrong:
        raise UserError(
            f"{parameter} = {path.name!r}: {wrong[0]} is missing, superfluous or of another shape "
            f"({len(wrong)} such tensors); give weights of the same architecture"
        )
    network.load_state_dict(fitting, strict=False)
