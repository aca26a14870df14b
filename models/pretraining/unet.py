"""Step 3 of remaking a bundled model: train its cross-attention UNet, without labels.

The UNet is conditioned on the tokens of the image encoder of step 2, with Gaussian noise of random
strength on them, so that it knows what to draw in the neighbourhood of an embedding; 10 % of the
tokens are replaced by learned "empty" tokens, the model's unconditional embedding. What ships is a
moving average of the weights.

    python -m models.pretraining.unet --domain models/domains/satellite.yaml --images pretrain.parquet \
        --output models/satellite-ldm
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from dinv.errors import UserError
from models.pretraining.domain import Domain, load_domain, load_images, symmetry
from models.pretraining.encoder import NUM_TOKENS, WIDTH, Contrastive
from models.pretraining.loop import argument_parser, mixed_precision, settings, train

MAX_TOKEN_NOISE = 1.5  # in units of the tokens' standard deviation
EMA_DECAY = 0.999
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Denoiser(nn.Module):
    """The UNet and the empty tokens it learns."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        levels = len(widths)
        self.unet: Any = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            down_block_types=["CrossAttnDownBlock2D"] * levels,
            up_block_types=["CrossAttnUpBlock2D"] * levels,
            block_out_channels=widths,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=tuple(w // 32 for w in widths),  # diffusers' name for the number of heads
            norm_num_groups=16,
        )
        self.empty = nn.Parameter(torch.randn(NUM_TOKENS, WIDTH))

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        n = len(tokens)
        tokens = tokens + MAX_TOKEN_NOISE * torch.rand(n, 1, 1) * torch.randn_like(tokens)
        tokens = torch.where(torch.rand(n, 1, 1) < 0.1, self.empty, tokens)
        return self.unet(noisy, t, tokens).sample.float()


def earlier_steps(output: Path) -> tuple[Path, Path]:
    """Weights of the autoencoder, and the encoder's checkpoint; raises UserError where one is missing."""
    paths = output / "vae" / WEIGHTS, output.with_suffix(".encoder.ckpt")
    for path, step in zip(paths, ("vae", "encoder"), strict=True):
        if not path.exists():
            raise UserError(f"{path}: no such file; run python -m models.pretraining.{step} first")
    return paths


def load_encoder(path: Path, domain: Domain) -> Contrastive:
    """Step 2's network, from its checkpoint."""
    prefix = "model.model."
    tensors = {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}
    model = Contrastive(domain.channels)
    model.load_state_dict(tensors)
    return model.eval()


class Encoders:
    """The frozen networks of steps 1 and 2."""

    def __init__(self, output: Path, domain: Domain) -> None:
        self.encoder = load_encoder(earlier_steps(output)[1], domain).encoder
        self.vae: Any = AutoencoderKL.from_pretrained(output / "vae", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, 32, 32] -> scaled latent means [B, 8, 8, 8] and tokens [B, K, D]."""
        means = self.vae.encode(images).latent_dist.mean
        return means * self.vae.config.scaling_factor, self.encoder(images)


def encode_all(encode: Encoders, images: torch.Tensor, symmetries: int) -> TensorDataset:
    """Latents and tokens of every image under every symmetry, float16: row `index * N + image`.

    Encoding costs a fifth of a training step; here each view is encoded once, not once per epoch.
    """
    latents, tokens = [], []
    for index in range(symmetries):
        for batch in tqdm(images.split(250), desc=f"encode, symmetry {index + 1} of {symmetries}"):
            z, c = encode(symmetry(batch, index))
            latents.append(z.half())
            tokens.append(c.half())
    return TensorDataset(torch.cat(latents), torch.cat(tokens))


def noise_schedule() -> Any:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        clip_sample=False,
    )


def start_from(folder: Path, model: Denoiser) -> None:
    """Take over the UNet of another domain's model: how to denoise is much the same everywhere."""
    try:
        model.unet.load_state_dict({k: v.float() for k, v in load_file(folder / "unet" / WEIGHTS).items()})
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--start {folder}: has no UNet of this domain's widths ({reason})") from error


def save(model: Denoiser, output: Path) -> None:
    """Write the float16 model in diffusers layout, with its empty embedding."""
    model.unet.half().save_pretrained(output / "unet")
    noise_schedule().save_pretrained(output / "scheduler")
    empty = {"prompt_embeds": model.empty.detach().half()}
    save_file(empty, output / "empty_prompt_embeds.safetensors")


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--start", type=Path, help="finished model whose UNet to start from")
    args = parser.parse_args()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    images = load_images(args.images, domain)
    views = encode_all(Encoders(args.output, domain), images, domain.symmetries)
    scheduler = noise_schedule()
    model = Denoiser(domain.unet.block_out_channels)
    if args.start:
        start_from(args.start, model)
    model.to(memory_format=torch.channels_last)

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch.randint(domain.symmetries, ids.shape)
        clean, tokens = (x.float() for x in views[drawn * len(images) + ids])
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (len(ids),))
        noisy = scheduler.add_noise(clean, noise, t)
        with mixed_precision():
            loss = (model(noisy, t, tokens) - noise).square().mean()
        return loss, loss.detach()

    training = settings(domain.unet, args)
    average = train(model, loss_of, len(images), "unet", training, args, ema_decay=EMA_DECAY)
    save(average, args.output)


if __name__ == "__main__":
    main()
