"""Inversion: ours against a plain implementation of the published recipe, in one process.

The reference does what the authors' code does: float32, the VAE run at every step, a one-hot
linear bank of 100 images, dense AdamW, uniform timesteps, 50 of the 100 images a step.

    python benchmarks/invert.py
    python benchmarks/invert.py --sd15 256 --steps 8      # on a GPU
"""

import argparse
import math
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from common import bundled, ceiling, compare, count_flops, machine, random_sd15
from diffusers import DDPMScheduler

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.images.image_set import ImageSet
from dinv.inversion.invert import heldout_draws, invert
from dinv.params import Params, load_params

GROUP, BATCH = 100, 50


class Published:
    """The recipe of the paper's code for one group of 100 images, in plain diffusers calls."""

    def __init__(self, model: LatentDiffusion, images: torch.Tensor, num_tokens: int):
        self.model, self.num_tokens = model, num_tokens
        self.unet = deepcopy(model.unet).float().to(memory_format=torch.contiguous_format)
        self.vae = deepcopy(model.vae).float().to(memory_format=torch.contiguous_format)
        self.pixels = images.permute(0, 3, 1, 2).float().to(model.device) / 127.5 - 1
        self.scheduler = DDPMScheduler.from_config(model.schedule)
        torch.manual_seed(0)
        self.bank = torch.nn.Linear(GROUP, num_tokens * model.width, bias=False).to(model.device)
        self.optimizer = torch.optim.AdamW(self.bank.parameters(), lr=0.03)
        self.half = 0

    def step(self) -> None:
        """One optimiser step on one of the two fixed halves: BATCH image-visits."""
        rows = torch.arange(self.half * BATCH, (self.half + 1) * BATCH, device=self.pixels.device)
        self.half = 1 - self.half
        with torch.no_grad():
            latents = self.vae.encode(self.pixels[rows]).latent_dist.sample()
        latents = latents * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (BATCH,), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, t)
        c = self.bank(F.one_hot(rows, GROUP).float()).view(BATCH, self.num_tokens, -1)
        loss = F.mse_loss(self.unet(noisy, t, c).sample, noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def embeddings(self) -> torch.Tensor:
        return self.bank.weight.detach().T.reshape(GROUP, self.num_tokens, -1)


def per_visit(
    model: LatentDiffusion, train: ImageSet, params: Params, runs: int, published: Published
) -> float:
    """Print the paired timing; return the ratio of the medians."""
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    visits = params.invert.num_visits

    def ours() -> None:
        invert(model, images, labels, train.ids, params.invert, GROUP)

    def reference() -> None:
        for _ in range(2 * visits):
            published.step()

    # Ours also measures the held-out loss (8 forward passes at 3 points); that is left in the time.
    slow, fast = compare("time per image-visit", reference, ours, (GROUP * visits,) * 2, runs, model.device)
    flops = count_flops(lambda: forward_backward(model)) / GROUP
    top = ceiling(model.device, model.dtype)
    print(
        f"work per visit {flops / 1e9:.3f} GFLOP; ours {flops / fast / 1e9:.0f} GFLOP/s, "
        f"{100 * flops / fast / top:.0f} % of the matrix-multiply ceiling of {top / 1e9:.0f} GFLOP/s"
    )
    return slow / fast


def forward_backward(model: LatentDiffusion) -> None:
    z = torch.randn(GROUP, *model.latent_shape, device=model.device)
    c = torch.randn(GROUP, 5, model.width, device=model.device, requires_grad=True)
    t = torch.randint(0, 1000, (GROUP,), device=model.device)
    model.predict(z, t, c).square().sum().backward()  # FlopCounterMode cannot follow autograd.grad


def to_equal_loss(
    model: LatentDiffusion, train: ImageSet, params: Params, visits: int, published: Published, ratio: float
) -> None:
    """Visits that each needs for the reference's final loss; `ratio` converts them into time."""
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    heldout = heldout_draws(model, model.encode(images), train.ids, params.invert)
    target = math.inf
    for visit in range(1, visits + 1):
        published.step(), published.step()
        if visit % max(1, visits // 20) == 0:
            target = heldout(published.embeddings()).mean().item()
            print(f"reference: held-out loss {target:.5f} after {visit} visits per image", flush=True)
    for n in (10, 20, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280):
        settings = params.invert.model_copy(update={"num_visits": n})
        loss = invert(model, images, labels, train.ids, settings, GROUP).heldout_loss[-1].mean().item()
        print(f"ours: held-out loss {loss:.5f} after {n} visits", flush=True)
        if loss <= target:
            print(f"time to the reference's loss: ratio {visits / n * ratio:.0f} (n = 1)")
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="ours; else params.yaml's"
    )
    parser.add_argument("--lr", type=float, help="of ours; else params.yaml's")
    parser.add_argument("--sd15", type=int, help="pixels: Stable Diffusion 1.5's architecture instead")
    parser.add_argument("--steps", type=int, help="visits of the paired timing; else params.yaml's")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--visits", type=int, default=0, help="the reference's full schedule; 0: skip it")
    args = parser.parse_args()
    params = load_params(args.params)
    if args.sd15:
        model, train = random_sd15(params, args.dtype, args.sd15)
    else:
        model, train = bundled(params, args.dtype)
    train = train.take(range(GROUP))
    update = {"num_visits": args.steps or params.invert.num_visits, "lr": args.lr or params.invert.lr}
    params = params.model_copy(update={"invert": params.invert.model_copy(update=update)})
    print(f"{machine(model.device)}; ours in {model.params.dtype}")
    published = Published(model, torch.from_numpy(train.images), params.invert.num_tokens)
    ratio = per_visit(model, train, params, args.runs, published)
    if args.visits:
        published = Published(model, torch.from_numpy(train.images), params.invert.num_tokens)
        to_equal_loss(model, train, params, args.visits, published, ratio)


if __name__ == "__main__":
    main()
