"""A trained generator as one safetensors file, and loading it to make images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dinv.errors import UserError
from dinv.files import part_paths
from dinv.gan.checkpoint import Tensors, flat, nested
from dinv.gan.networks import Generator

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Shape:
    """What a generator is built from."""

    latent_size: int
    width: int
    num_classes: int
    side: int
    num_channels: int


@dataclass(frozen=True)
class Gan:
    """A generator that is trained; `class_names` are those of its labels."""

    generator: Generator
    class_names: list[str]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.generator.last.weight.device

    @torch.no_grad()
    def images(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Latents float32 [B, Z] and labels int64 [B] -> uint8 [B, H, W, C] on the CPU."""
        return to_levels(self.generator(z.to(self.device), y.to(self.device)))


def to_levels(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] [B, C, H, W] -> uint8 [B, H, W, C] on the CPU, rounded to nearest."""
    return ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def to_floats(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [B, H, W, C] -> float32 in [-1, 1], [B, C, H, W]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_gan(
    generator: Generator, shape: Shape, class_names: list[str], losses: torch.Tensor, path: Path
) -> None:
    """Write weights and losses [steps, 2] (generator, discriminator); equal ones give equal bytes."""
    # One entry: several are written in an order that differs from run to run.
    metadata = {"gan": json.dumps({"shape": vars(shape), "class_names": class_names})}
    save_file({"losses": losses, **flat("generator", generator.state_dict())}, path, metadata)


def read_losses(folder: Path) -> torch.Tensor:
    """Losses of every step, float32 [steps, 2]."""
    return _read(folder)[0]["losses"]


def load_gan(folder: Path, device: torch.device) -> Gan:
    """The frozen generator of a folder; raises UserError when it is missing or damaged."""
    tensors, metadata = _read(folder)
    try:
        saved = json.loads(metadata["gan"])
        generator = Generator(**saved["shape"])
        generator.load_state_dict(nested("generator", tensors))
        names = list(saved["class_names"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{folder}: not a GAN of dinv ({reason}); name what method gan learned") from error
    return Gan(generator.to(device).eval().requires_grad_(False), names)


def _read(folder: Path) -> tuple[Tensors, dict[str, str]]:
    (path, *_) = part_paths(folder, SUFFIX, "GAN")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: truncated or damaged ({reason}); run dvc checkout") from error
