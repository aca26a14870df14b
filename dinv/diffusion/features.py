"""Features of images that the frozen model's own UNet has: one noised pass, read at one of its blocks."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.errors import UserError
from dinv.files import bytes_digest
from dinv.images.resize import convert_batch
from dinv.rng import generator

Pooling = Literal["none", "mean"]


def unet_features(
    model: LatentDiffusion, block: str, timestep: int, pooling: Pooling
) -> Callable[[NDArray[np.uint8]], torch.Tensor]:
    """A function from uint8 [B, H, W, C] to a block's output for z_t and the empty prompt, float32 [B, D].

    Args:
        model: scales images to its own resolution and channels.
        block: `mid`, `down_0`, `up_1`, ...
        timestep: t of the noised latents z_t; the noise is keyed by the image's pixels.
        pooling: none: every position of the block's output | mean over positions.

    Raises:
        UserError: the UNet has no such block or timestep, or the model no empty prompt.
    """
    module, condition = find_block(model.unet, block), _empty_prompt(model)
    if timestep >= model.num_train_timesteps:
        raise UserError(f"features.timestep = {timestep}: must be below {model.num_train_timesteps}")
    channels = 1 if model.vae.config.in_channels == 1 else 3

    @torch.no_grad()
    def extract(images: NDArray[np.uint8]) -> torch.Tensor:
        pixels = convert_batch(images, model.params.resolution, channels)
        z0 = model.encode(torch.from_numpy(pixels)).mean
        t = torch.full((len(z0),), timestep, device=model.device)
        z_t = model.add_noise(z0, keyed_noise(images, z0.shape[1:]).to(model.device), t)
        output = _output_of(module, lambda: model.predict(z_t, t, condition.expand(len(z0), -1, -1)))
        return (output.mean((2, 3)) if pooling == "mean" else output.flatten(1)).float().cpu()

    return extract


def keyed_noise(images: NDArray[np.uint8], shape: Sequence[int]) -> torch.Tensor:
    """N(0, I), float32 [B, *shape]; equal pixels have equal noise, whatever is beside them."""
    keys = [bytes_digest(image.tobytes()) for image in images]
    return torch.stack([torch.randn(*shape, generator=generator(0, "features", key)) for key in keys])


def find_block(unet: Any, block: str) -> torch.nn.Module:
    """A block of the UNet by name; raises UserError, which names those there are."""
    blocks = {f"down_{i}": module for i, module in enumerate(unet.down_blocks)}
    blocks["mid"] = unet.mid_block
    blocks |= {f"up_{i}": module for i, module in enumerate(unet.up_blocks)}
    if block not in blocks:
        raise UserError(f"features.block = {block!r}: this UNet has {', '.join(blocks)}")
    found: torch.nn.Module = blocks[block]
    return found


class _Reached(Exception):
    """What comes after the block need not be computed."""


def _output_of(module: torch.nn.Module, run: Callable[[], object]) -> torch.Tensor:
    """What a module puts out while `run` runs, [B, c, h, w]; the run ends there."""
    found: list[torch.Tensor] = []

    def keep(_: object, __: object, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)  # down blocks: with residuals
        raise _Reached

    handle = module.register_forward_hook(keep)
    try:
        run()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _empty_prompt(model: LatentDiffusion) -> torch.Tensor:
    """All tokens of the empty prompt, [1, K, D], on the device."""
    if model._empty_prompt is None:
        raise UserError(
            f"features.path = {model.params.path!r}: the model has no text encoder, so no empty prompt; "
            "use another model, or another network"
        )
    return model._empty_prompt[None].to(model.device)
