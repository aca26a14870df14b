"""What a finished model makes of images it has not seen: losses, and a picture of samples.

Needs the encoder's checkpoint beside the model folder. A model of captioned images is measured on each of its
sources, with captions too, and so is its CLIP.

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
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import load_file

from dinv.files import write_json
from dinv.images.grid import labelled_grid
from models.pretraining.clip import load_clip, zero_shot_accuracy
from models.pretraining.data import Captioned, load_captioned, load_images
from models.pretraining.domain import Domain, Source, load_domain
from models.pretraining.text import TextEncoder
from models.pretraining.unet import Encoders, noise_schedule

NUM_IMAGES = 2000  # of each source
NUM_PROMPTS = 6
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
    """Latents [N, 8, 8, 8] from noise that is the same in every call, by guided DDIM.

    `empty` may have more tokens than the condition: as many are taken.
    """
    scheduler = DDIMScheduler.from_config(noise_schedule().config, set_alpha_to_one=False)
    scheduler.set_timesteps(SAMPLING_STEPS)
    z = torch.randn(len(tokens), 8, 8, 8, generator=torch.Generator().manual_seed(0))
    both = torch.cat([empty[: tokens.shape[1]].expand_as(tokens), tokens])
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


class Finished:
    """The networks of a finished model; `empty` is its unconditional condition, [L, D]."""

    def __init__(self, output: Path, domain: Domain) -> None:
        self.encode = Encoders(output, domain)
        self.vae = self.encode.vae
        self.unet = UNet2DConditionModel.from_pretrained(output / "unet", torch_dtype=torch.float32).eval()
        self.text = TextEncoder(output) if domain.sources else None
        if self.text:
            self.empty = self.text([""])[0]
        else:
            self.empty = load_file(output / "empty_prompt_embeds.safetensors")["prompt_embeds"].float()

    def encode_all(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and tokens of all images."""
        latents, tokens = zip(*map(self.encode, images.split(250)), strict=True)
        return torch.cat(latents), torch.cat(tokens)

    def draw(self, condition: torch.Tensor) -> NDArray[np.uint8]:
        """One picture per condition [N, L, D]."""
        return pixels(decode(self.vae, sample(self.unet, condition, self.empty)))


def sample_rows(model: Finished, images: torch.Tensor) -> list[tuple[str, NDArray[np.uint8]]]:
    """Rows of the picture: unseen images, reconstructed, and drawn with rising noise on their tokens."""
    latents, tokens = model.encode_all(images)
    rows = [("unseen images", pixels(images)), ("autoencoder", pixels(decode(model.vae, latents)))]
    offset = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    for noise in (0.0, 0.7, 1.5):
        rows.append((f"own tokens, noise {noise:g}", model.draw(tokens + noise * offset)))
    return [*rows, ("empty tokens", model.draw(model.empty.expand(len(images), -1, -1)))]


def prompt_rows(model: Finished, captions: list[list[str]]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Rows drawn from the first captions of a few kinds, among them the last, which name no class."""
    assert model.text
    chosen = np.linspace(0, len(captions) - 2, NUM_PROMPTS - 1).astype(int).tolist()
    prompts = [captions[kind][0] for kind in dict.fromkeys([*chosen, len(captions) - 1])]
    return [(text, model.draw(model.text([text]).expand(COLUMNS, -1, -1))) for text in prompts]


def losses(model: Finished, images: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Errors of the autoencoder and of the denoiser under several conditions; captions may be none."""
    latents, tokens = model.encode_all(images)
    error = float((decode(model.vae, latents) - images).square().mean())
    empty = model.empty[: tokens.shape[1]].expand_as(tokens)
    figures = {
        "images": len(images),
        "autoencoder_mse": error,
        "autoencoder_psnr": 10 * math.log10(4 / error),
        "loss_own_tokens": denoising_loss(model.unet, latents, tokens),
        "loss_tokens_of_another": denoising_loss(model.unet, latents, tokens.roll(1, 0)),
        "loss_empty_tokens": denoising_loss(model.unet, latents, empty),
    }
    if model.text:
        states = model.text(captions)
        figures["loss_own_caption"] = denoising_loss(model.unet, latents, states)
        figures["loss_caption_of_another"] = denoising_loss(model.unet, latents, states.roll(1, 0))
        figures["loss_empty_prompt"] = denoising_loss(model.unet, latents, model.empty.expand_as(states))
    return {name: round(value, 5) for name, value in figures.items()}


def some(images: torch.Tensor) -> torch.Tensor:
    """Rows of the images to look at: a random draw that is always the same."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:NUM_IMAGES]


def measure(model: Finished, args: argparse.Namespace, domain: Domain) -> None:
    """Print the losses and draw the picture."""
    images = load_images(args.images, domain)
    images = images[some(images)]
    save_figures(losses(model, images, []), args.output)
    save_picture(sample_rows(model, images[:COLUMNS]), args.output)


def measure_captioned(model: Finished, args: argparse.Namespace, domain: Domain) -> None:
    """Print losses and zero-shot accuracy on each source, and draw a picture of those that may be shown."""
    data = load_captioned(args.images, domain, unseen=True)
    parts = [data.only(data.sources == number) for number in range(len(domain.sources))]
    parts = [part.only(some(part.images)) for part in parts if len(part.images)]
    clip, tokenizer = load_clip(args.output)
    report = {}
    for part in parts:
        figures = losses(model, part.images, [part.captions[kind][0] for kind in part.kinds])
        figures["clip_zero_shot_accuracy"] = round(zero_shot_accuracy(clip, tokenizer, part), 4)
        report[_source(part, domain).path] = figures
    save_figures(report, args.output)
    few = few_to_show(parts, domain)
    save_picture([*sample_rows(model, few), *prompt_rows(model, data.captions)], args.output)


def few_to_show(parts: list[Captioned], domain: Domain) -> torch.Tensor:
    """First images of each source that may be shown, `COLUMNS` in all, or fewer where sources are small."""
    shown = [part.images for part in parts if _source(part, domain).shown]
    return torch.cat([images[: -(-COLUMNS // len(shown))] for images in shown])[:COLUMNS]


def _source(part: Captioned, domain: Domain) -> Source:
    return domain.sources[int(part.sources[0])]


def save_figures(figures: dict[str, Any], output: Path) -> None:
    """Print them, and keep them beside the card that shows them."""
    print(json.dumps(figures, indent=2))
    write_json(output / "measured.json", figures)


def save_picture(rows: list[tuple[str, NDArray[np.uint8]]], output: Path) -> None:
    labelled_grid(rows).save(output / "samples.png", optimize=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", type=Path, required=True, help="file of models/domains")
    parser.add_argument("--images", type=Path, required=True, help="unseen images, or root folder of sources")
    parser.add_argument("--output", type=Path, required=True, help="model folder")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    domain = load_domain(args.domain)
    model = Finished(args.output, domain)
    (measure_captioned if domain.sources else measure)(model, args, domain)


if __name__ == "__main__":
    main()
