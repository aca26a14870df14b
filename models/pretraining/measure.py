"""What a finished model makes of images it has not seen: losses, and a picture of samples.

Needs the encoder's checkpoint beside the model folder.

    python -m models.pretraining.measure --domain models/domains/satellite.yaml --images pool.parquet \
        --output models/satellite-ldm
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file

from dinv.images.grid import labelled_grid
from models.pretraining.domain import load_domain, load_images
from models.pretraining.unet import encode, noise_schedule

NUM_IMAGES = 2000
COLUMNS, SAMPLING_STEPS, GUIDANCE = 10, 50, 1.5


@torch.no_grad()
def denoising_loss(unet: Any, latents: torch.Tensor, tokens: torch.Tensor) -> float:
    """Mean squared error of the predicted noise, at timesteps spread evenly over the images."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.linspace(0, 999, len(latents)).long()[torch.randperm(len(latents), generator=generator)]
    noisy = noise_schedule().add_noise(latents, noise, t)
    batches = zip(noisy.split(250), t.split(250), tokens.split(250), noise.split(250), strict=True)
    return float(np.mean([(unet(z, s, c).sample - e).square().mean() for z, s, c, e in batches]))


@torch.no_grad()
def sample(unet: Any, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Latents [N, 8, 8, 8] from noise that is the same in every call, by guided DDIM."""
    scheduler = DDIMScheduler.from_config(noise_schedule().config, set_alpha_to_one=False)
    scheduler.set_timesteps(SAMPLING_STEPS)
    z = torch.randn(len(tokens), 8, 8, 8, generator=torch.Generator().manual_seed(0))
    both = torch.cat([empty.expand_as(tokens), tokens])
    for t in scheduler.timesteps:
        uncond, cond = unet(torch.cat([z, z]), t, both).sample.chunk(2)
        z = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, z).prev_sample
    return z


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    chunks = [vae.decode(z / vae.config.scaling_factor).sample for z in latents.split(250)]
    return torch.cat(chunks).clamp(-1, 1)


def pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8] = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return levels


def sample_rows(
    vae: Any,
    unet: Any,
    empty: torch.Tensor,
    images: torch.Tensor,
    latents: torch.Tensor,
    tokens: torch.Tensor,
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Rows of the picture: unseen images, reconstructed, and drawn with rising noise on their tokens."""
    rows = [("unseen images", pixels(images)), ("autoencoder", pixels(decode(vae, latents)))]
    offset = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    for noise in (0.0, 0.7, 1.5):
        drawn = decode(vae, sample(unet, tokens + noise * offset, empty))
        rows.append((f"own tokens, noise {noise:g}", pixels(drawn)))
    drawn = decode(vae, sample(unet, empty.expand_as(tokens), empty))
    return [*rows, ("empty tokens", pixels(drawn))]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", type=Path, required=True, help="file of models/domains")
    parser.add_argument("--images", type=Path, required=True, help="images that training did not see")
    parser.add_argument("--output", type=Path, required=True, help="model folder")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    domain = load_domain(args.domain)
    images = load_images(args.images, domain)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:NUM_IMAGES]
    images = images[chosen]
    latents, tokens = (x[0] for x in encode(args.output, images, domain, symmetries=1))
    vae = AutoencoderKL.from_pretrained(args.output / "vae", torch_dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(args.output / "unet", torch_dtype=torch.float32).eval()
    empty = load_file(args.output / "empty_prompt_embeds.safetensors")["prompt_embeds"].float()
    error = float((decode(vae, latents) - images).square().mean())
    figures = {
        "images": len(images),
        "autoencoder_mse": error,
        "autoencoder_psnr": 10 * math.log10(4 / error),
        "loss_own_tokens": denoising_loss(unet, latents, tokens),
        "loss_tokens_of_another": denoising_loss(unet, latents, tokens.roll(1, 0)),
        "loss_empty_tokens": denoising_loss(unet, latents, empty.expand_as(tokens)),
    }
    print(json.dumps({k: round(v, 5) for k, v in figures.items()}, indent=2))
    few = slice(COLUMNS)
    rows = sample_rows(vae, unet, empty, images[few], latents[few], tokens[few])
    labelled_grid(rows).save(args.output / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
