"""Step 1 of remaking the bundled model: train its AutoencoderKL, without labels.

Reads the Fashion-MNIST training images from an idx file and uses images 10,000..59,999 only;
the labelled task is drawn from 0..9,999, which this model never sees. Writes the autoencoder in
diffusers layout. A killed run resumes from its last checkpoint.

    python models/pretrain_vae.py --images train-images-idx3-ubyte.gz --output models/fashion-ldm
"""

import torch
from diffusers import AutoencoderKL
from pretraining import IMAGE_SIZE, load_pretraining_images, mixed_precision, parse_arguments, train

CONFIG = dict(
    in_channels=1,
    out_channels=1,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=(32, 32, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    sample_size=IMAGE_SIZE,
    mid_block_add_attention=False,
)


def autoencoder_loss(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel MSE + absolute error of the image and of its gradients (edges) + a weak KL term."""
    with mixed_precision():
        mean, log_var = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        reconstruction = vae.decoder(vae.post_quant_conv(latents)).float()
    error = reconstruction - images
    mse = error.square().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=(1, 2, 3)).mean()
    return mse + 0.05 * error.abs().mean() + 0.1 * edges + 1e-5 * kl / images[0].numel(), mse.detach()


@torch.no_grad()
def latent_std(vae: AutoencoderKL, images: torch.Tensor) -> float:
    means = [vae.encode(b).latent_dist.mean for b in images[:5000].split(250)]
    return float(torch.cat(means).std())


def main() -> None:
    args = parse_arguments(__doc__, steps=6500, batch_size=64, lr=2e-3)
    torch.manual_seed(0)
    images = load_pretraining_images(args.images)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    loss_fn = torch.compile(autoencoder_loss)

    def loss_of(step: int, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return loss_fn(vae, images[ids].contiguous(memory_format=torch.channels_last))

    train(vae, loss_of, len(images), "vae", args, betas=(0.9, 0.99), weight_decay=1e-3)
    vae.register_to_config(scaling_factor=round(1 / latent_std(vae, images), 5))
    vae.save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()
