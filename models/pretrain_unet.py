"""Step 3 of remaking the bundled model: train its cross-attention UNet, without labels.

The UNet is conditioned on the tokens of the image encoder of step 2, with Gaussian noise of random
strength on them, so that it knows what to draw in the neighbourhood of an embedding; 10 % of the
tokens are replaced by learned "empty" tokens, the model's unconditional embedding.

    python models/pretrain_unet.py --images train-images-idx3-ubyte.gz --output models/fashion-ldm
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pretrain_encoder import NUM_TOKENS, WIDTH, Contrastive
from pretraining import Checkpoint, load_pretraining_images, mixed_precision, parse_arguments, train
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from dinv.errors import UserError

MAX_TOKEN_NOISE = 1.5  # in units of the tokens' standard deviation
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


class Denoiser(nn.Module):
    """The UNet and the empty tokens it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**CONFIG)
        self.empty = nn.Parameter(torch.randn(NUM_TOKENS, WIDTH))

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        n = len(tokens)
        tokens = tokens + MAX_TOKEN_NOISE * torch.rand(n, 1, 1) * torch.randn_like(tokens)
        tokens = torch.where(torch.rand(n, 1, 1) < 0.1, self.empty, tokens)
        return self.unet(noisy, t, tokens).sample.float()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Scaled latent means, float32 [N, 8, 8, 8]."""
    chunks = [vae.encode(b).latent_dist.mean for b in tqdm(images.split(500), "latents")]
    return torch.cat(chunks) * vae.config.scaling_factor


@torch.no_grad()
def image_tokens(output: Path, images: torch.Tensor) -> torch.Tensor:
    """Tokens of step 2's encoder, float32 [N, K, D]."""
    model = Contrastive().eval()
    checkpoint = Checkpoint(output.with_suffix(".encoder.ckpt"), model, torch.optim.AdamW(model.parameters()))
    if checkpoint.load() == 0:
        raise UserError(f"{checkpoint.path}: no such file; run models/pretrain_encoder.py first")
    return torch.cat([model.encoder(b) for b in tqdm(images.split(500), "tokens")])


def save(model: Denoiser, scheduler: DDPMScheduler, output: Path) -> None:
    """Write the float16 model in diffusers layout, with its empty embedding."""
    model.unet.half().save_pretrained(output / "unet")
    vae = AutoencoderKL.from_pretrained(output / "vae").half()
    vae.register_to_config(_name_or_path="")  # else the folder of this machine would ship
    vae.save_pretrained(output / "vae")
    scheduler.save_pretrained(output / "scheduler")
    empty = {"prompt_embeds": model.empty.detach().half()}
    save_file(empty, output / "empty_prompt_embeds.safetensors")


def main() -> None:
    args = parse_arguments(__doc__, steps=5000, batch_size=64, lr=1e-3)
    torch.manual_seed(0)
    images = load_pretraining_images(args.images)
    latents = encode(AutoencoderKL.from_pretrained(args.output / "vae").eval(), images)
    tokens = image_tokens(args.output, images)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    model = Denoiser().to(memory_format=torch.channels_last)
    denoise = torch.compile(model)

    def loss_of(step: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn_like(latents[ids])
        t = torch.randint(0, 1000, (len(ids),))
        noisy = scheduler.add_noise(latents[ids], noise, t)
        with mixed_precision():
            loss = (denoise(noisy, t, tokens[ids]) - noise).square().mean()
        return loss, loss.detach()

    train(model, loss_of, len(images), "unet", args)
    save(model, scheduler, args.output)


if __name__ == "__main__":
    main()
