"""Step 1 of remaking the bundled model: train its AutoencoderKL, without labels.

Reads the Fashion-MNIST training images from an idx file and uses images 10,000..59,999 only;
the labelled task is drawn from 0..9,999, which this model never sees. Writes the autoencoder in
diffusers layout. A killed run resumes from its last checkpoint.

    python models/pretrain_vae.py --images train-images-idx3-ubyte.gz --output models/fashion-ldm
"""

import argparse
import gzip
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tqdm import tqdm

FIRST_PRETRAINING_IMAGE = 10_000
IMAGE_SIZE = 32
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


def load_pretraining_images(path: Path) -> torch.Tensor:
    """The pre-training images, float32 [N, 1, 32, 32] in [-1, 1], zero-padded from 28x28."""
    with gzip.open(path) as file:
        raw = file.read()
    images = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    padded = F.pad(images[FIRST_PRETRAINING_IMAGE:], (2, 2, 2, 2))
    return padded.float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then linear decay to zero."""
    return peak * min((step + 1) / warmup, (steps - step) / (steps - warmup))


def epoch_order(num_images: int, epoch: int) -> torch.Tensor:
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(epoch))


def batch_ids(num_images: int, step: int, batch_size: int) -> torch.Tensor:
    """Ids of one step's batch: a fresh permutation each epoch, whatever step the run resumes at."""
    per_epoch = num_images // batch_size
    epoch, i = divmod(step, per_epoch)
    return epoch_order(num_images, epoch)[i * batch_size : (i + 1) * batch_size]


class Checkpoint:
    """Model and optimiser tensors in one safetensors file, replaced atomically."""

    def __init__(self, path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.path, self.model, self.optimizer = path, model, optimizer

    def save(self, step: int) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        tmp = self.path.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp, {"step": str(step)})
        os.replace(tmp, self.path)

    def load(self) -> int:
        """Restore and return the number of finished steps; 0 when there is no checkpoint."""
        if not self.path.exists():
            return 0
        tensors = load_file(self.path)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".", 2)
                state.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        header = self.path.open("rb").read(8)
        meta = json.loads(self.path.open("rb").read(8 + int.from_bytes(header, "little"))[8:])
        return int(meta["__metadata__"]["step"])


def autoencoder_loss(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel MSE + absolute error of the image and of its gradients (edges) + a weak KL term."""
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_var = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        reconstruction = vae.decoder(vae.post_quant_conv(latents)).float()
    error = reconstruction - images
    mse = error.square().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(dim=(1, 2, 3)).mean()
    return mse + 0.05 * error.abs().mean() + 0.1 * edges + 1e-5 * kl / images[0].numel(), mse


def train(vae: AutoencoderKL, images: torch.Tensor, args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    checkpoint = Checkpoint(args.output.with_suffix(".vae.ckpt"), vae, optimizer)
    first = checkpoint.load()
    loss_fn = torch.compile(autoencoder_loss)
    started, smooth = time.time(), None
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=10)
    for step in bar:
        torch.manual_seed(step)
        batch = images[batch_ids(len(images), step, args.batch_size)]
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        loss, mse = loss_fn(vae, batch.contiguous(memory_format=torch.channels_last))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = mse.item() if smooth is None else 0.99 * smooth + 0.01 * mse.item()
        if (step + 1) % 250 == 0:
            checkpoint.save(step + 1)
            rate = (step + 1 - first) * args.batch_size / (time.time() - started)
            tqdm.write(f"step {step + 1} mse {smooth:.5f} images/s {rate:.0f}")


@torch.no_grad()
def latent_std(vae: AutoencoderKL, images: torch.Tensor) -> float:
    means = [vae.encode(b).latent_dist.mean for b in images[:5000].split(250)]
    return float(torch.cat(means).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="idx3 file of the train split")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = load_pretraining_images(args.images)
    vae = AutoencoderKL(**CONFIG).to(memory_format=torch.channels_last)
    train(vae, images, args)
    vae.register_to_config(scaling_factor=round(1 / latent_std(vae, images), 5))
    vae.save_pretrained(args.output / "vae")


if __name__ == "__main__":
    main()
