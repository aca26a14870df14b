"""Step 2 of remaking the bundled model: train its cross-attention UNet, without labels.

The UNet is conditioned on K tokens that a small image encoder, trained along with it and thrown
away afterwards, makes from a distorted copy of the image. Gaussian noise of random strength on
the tokens makes neighbouring embeddings mean similar images; 10 % of the tokens are replaced by
learned "empty" tokens, the model's unconditional embedding. A killed run resumes.

    python models/pretrain_unet.py --images train-images-idx3-ubyte.gz --output models/fashion-ldm
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pretrain_vae import Checkpoint, batch_ids, learning_rate, load_pretraining_images
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

NUM_TOKENS, WIDTH = 5, 128
CONFIG = dict(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    block_out_channels=(64, 128),
    layers_per_block=1,
    cross_attention_dim=WIDTH,
    attention_head_dim=(2, 4),  # diffusers' historic name: number of heads per level
    norm_num_groups=16,
)


class ImageTokens(nn.Module):
    """Image [B, 1, 32, 32] -> condition tokens [B, K, D] of unit root mean square."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(c_in, c_out, 3, 2, 1), nn.GroupNorm(8, c_out), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, NUM_TOKENS * WIDTH))
        self.empty = nn.Parameter(torch.randn(NUM_TOKENS, WIDTH))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.body(images).float().view(-1, NUM_TOKENS, WIDTH)
        return F.layer_norm(tokens, (WIDTH,))


class Trainee(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**CONFIG)
        self.encoder = ImageTokens()


def distort(images: torch.Tensor) -> torch.Tensor:
    """Half of the images get a small random rotation, scale, shift and flip."""
    n = len(images)
    active = (torch.rand(n) < 0.5).float()
    angle = 0.2 * torch.randn(n) * active
    scale = 1 + 0.1 * torch.randn(n) * active
    flip = torch.where(torch.rand(n) < 0.5 * active, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = flip * scale * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = flip * scale * angle.sin(), scale * angle.cos()
    theta[:, :, 2] = 0.08 * torch.randn(n, 2) * active[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def condition(model: Trainee, distorted: torch.Tensor, max_noise: float) -> torch.Tensor:
    """Noisy tokens [B, K, D]; one image in ten gets the learned empty tokens instead."""
    n = len(distorted)
    tokens = model.encoder(distorted)
    tokens = tokens + max_noise * torch.rand(n, 1, 1) * torch.randn_like(tokens)
    return torch.where(torch.rand(n, 1, 1) < 0.1, model.encoder.empty, tokens)


def diffusion_loss(
    model: Trainee, noisy: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        tokens = condition(model, images, max_noise=1.0)
        prediction = model.unet(noisy, t, tokens).sample
    return (prediction.float() - noise).square().mean()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    chunks = [vae.encode(b).latent_dist.mean for b in tqdm(images.split(500), "encode")]
    return torch.cat(chunks) * vae.config.scaling_factor


def train(
    model: Trainee,
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    images: torch.Tensor,
    args: argparse.Namespace,
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    checkpoint = Checkpoint(args.output.with_suffix(".unet.ckpt"), model, optimizer)
    first = checkpoint.load()
    loss_fn = torch.compile(diffusion_loss) if args.compile else diffusion_loss
    started, smooth = time.time(), None
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=20)
    for step in bar:
        torch.manual_seed(step)
        ids = batch_ids(len(images), step, args.batch_size)
        noise = torch.randn_like(latents[ids])
        t = torch.randint(0, 1000, (len(ids),))
        noisy = scheduler.add_noise(latents[ids], noise, t)
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        loss = loss_fn(model, noisy, noise, t, distort(images[ids]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if smooth is None else 0.995 * smooth + 0.005 * loss.item()
        if (step + 1) % 250 == 0:
            checkpoint.save(step + 1)
            rate = (step + 1 - first) * args.batch_size / (time.time() - started)
            tqdm.write(f"step {step + 1} loss {smooth:.5f} images/s {rate:.0f}")


def save(model: Trainee, scheduler: DDPMScheduler, output: Path) -> None:
    """Write the float16 model in diffusers layout, with its empty embedding."""
    model.unet.half().save_pretrained(output / "unet")
    vae = AutoencoderKL.from_pretrained(output / "vae").half()
    vae.register_to_config(_name_or_path="")  # else the folder of this machine would ship
    vae.save_pretrained(output / "vae")
    scheduler.save_pretrained(output / "scheduler")
    empty = {"prompt_embeds": model.encoder.empty.detach().half()}
    save_file(empty, output / "empty_prompt_embeds.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="idx3 file of the train split")
    parser.add_argument("--output", type=Path, required=True, help="model folder with vae/ in it")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = load_pretraining_images(args.images)
    vae = AutoencoderKL.from_pretrained(args.output / "vae").eval()
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    model = Trainee().to(memory_format=torch.channels_last)
    train(model, scheduler, encode(vae, images), images, args)
    save(model, scheduler, args.output)


if __name__ == "__main__":
    main()
