"""Step 1 of remaking a bundled model: train its AutoencoderKL, without labels.

Writes the autoencoder in diffusers layout. A killed run resumes from its last checkpoint.

    python -m models.pretraining.vae --domain models/domains/satellite.yaml --images pretrain.parquet \
        --output models/satellite-ldm
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from models.pretraining.data import load_images
from models.pretraining.domain import IMAGE_SIZE, Domain, load_domain, symmetry
from models.pretraining.loop import argument_parser, mixed_precision, settings, start_from, train


def autoencoder(domain: Domain) -> Any:
    """Images [B, C, 32, 32] <-> latents [B, 8, 8, 8] when there are three widths."""
    levels = len(domain.vae.block_out_channels)
    return AutoencoderKL(
        in_channels=domain.channels,
        out_channels=domain.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=domain.vae.block_out_channels,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
    )


def autoencoder_loss(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Error of the reconstruction + a weak KL term; and the pixel MSE."""
    with mixed_precision():
        mean, log_var = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        reconstruction = vae.decoder(vae.post_quant_conv(latents)).float()
    loss, mse = reconstruction_loss(reconstruction - images)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=(1, 2, 3)).mean()
    return loss + 1e-5 * kl / images[0].numel(), mse


def decoder_loss(vae: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same error of the decoder alone, on the latents that the encoder is surest of."""
    with mixed_precision():
        with torch.no_grad():
            mean = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)[0]
        reconstruction = vae.decoder(vae.post_quant_conv(mean)).float()
    return reconstruction_loss(reconstruction - images)


def reconstruction_loss(error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel MSE + absolute error of the image and of its gradients (edges); and the MSE for the record."""
    mse = error.square().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return mse + 0.05 * error.abs().mean() + 0.1 * edges, mse.detach()


@torch.no_grad()
def latent_std(vae: Any, images: torch.Tensor) -> float:
    means = [vae.encode(b).latent_dist.mean for b in images[:5000].split(250)]
    return float(torch.cat(means).std())


def freeze_encoder(vae: Any) -> None:
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)


def parse_arguments() -> Any:
    parser = argument_parser(__doc__)
    parser.add_argument("--start", type=Path, help="finished model whose autoencoder to start from")
    parser.add_argument(
        "--decoder-only",
        action="store_true",
        help="train the decoder further, of --start's model or the output's: latents stay what they are",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    domain = load_domain(args.domain)
    torch.manual_seed(0)
    images = load_images(args.images, domain)
    vae = autoencoder(domain).to(memory_format=torch.channels_last)
    start = args.start or args.output
    if args.start or args.decoder_only:
        start_from(start, "vae", vae)
    if args.decoder_only:
        freeze_encoder(vae)
    loss_fn = torch.compile(decoder_loss if args.decoder_only else autoencoder_loss)

    def loss_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = symmetry(images[ids], int(torch.randint(domain.symmetries, ())))
        return loss_fn(vae, batch.contiguous(memory_format=torch.channels_last))

    name = "decoder" if args.decoder_only else "vae"
    training = settings(domain.vae, args)
    vae = train(vae, loss_of, len(images), name, training, args, betas=(0.9, 0.99), weight_decay=1e-3)
    if args.decoder_only:
        scale = AutoencoderKL.load_config(start / "vae")["scaling_factor"]
    else:
        scale = round(1 / latent_std(vae, images), 5)
    vae.register_to_config(scaling_factor=scale)
    vae.half().save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()
