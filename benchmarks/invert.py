"""Inversion: ours against a plain implementation of the published recipe, in one process.

The reference does what the authors' code does: float32, the VAE run at every step, a one-hot
linear bank of 100 images, dense AdamW, uniform timesteps, 50 of the 100 images a step.

    python benchmarks/invert.py
    python benchmarks/invert.py --sd15 256 --steps 8      # on a GPU
"""

import math
from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from common import bundled, ceiling, compare, count_flops, machine, make_parser, random_sd15
from diffusers import DDPMScheduler

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.images.image_set import ImageSet
from dinv.inversion.invert import ImageEmbeddingsParams, heldout_draws, invert
from dinv.params import load_params

GROUP = 100
VISITS = (10, 20, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280)


class Published:
    """The recipe of the paper's code for one group of images, in plain diffusers calls."""

    def __init__(self, model: LatentDiffusion, images: ImageSet, num_tokens: int):
        self.model, self.num_tokens, self.group = model, num_tokens, len(images)
        self.unet = deepcopy(model.unet).float().to(memory_format=torch.contiguous_format)
        self.vae = deepcopy(model.vae).float().to(memory_format=torch.contiguous_format)
        self.pixels = images.tensor().float().to(model.device) / 127.5 - 1
        self.scheduler = DDPMScheduler.from_config(model.schedule)
        torch.manual_seed(0)
        self.bank = torch.nn.Linear(self.group, num_tokens * model.width, bias=False).to(model.device)
        self.optimizer = torch.optim.AdamW(self.bank.parameters(), lr=0.03)
        self.half = 0

    def step(self) -> None:
        """One optimiser step on one of the two fixed halves."""
        batch = self.group // 2
        rows = torch.arange(self.half * batch, (self.half + 1) * batch, device=self.pixels.device)
        self.half = 1 - self.half
        with torch.no_grad():
            latents = self.vae.encode(self.pixels[rows]).latent_dist.sample()
        latents = latents * self.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (batch,), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, t)
        c = self.bank(F.one_hot(rows, self.group).float()).view(batch, self.num_tokens, -1)
        loss = F.mse_loss(self.unet(noisy, t, c).sample, noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def embeddings(self) -> torch.Tensor:
        return self.bank.weight.detach().T.reshape(self.group, self.num_tokens, -1)


def learn(model: LatentDiffusion, train: ImageSet, params: ImageEmbeddingsParams) -> float:
    """Ours, all images together; returns the mean held-out loss at the end."""
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    bank = invert(model, images, labels, train.ids, params, len(train))
    return bank.heldout_loss[-1].mean().item()


def per_visit(
    model: LatentDiffusion, train: ImageSet, params: ImageEmbeddingsParams, runs: int, size: int | None
) -> float:
    """Print the paired timing; return the ratio of the medians. `size` is of the ceiling's matrices."""
    visits, group = params.num_visits, len(train)
    published = Published(model, train, params.num_tokens)

    def reference() -> None:
        for _ in range(2 * visits):
            published.step()

    # Ours also measures the held-out loss (8 forward passes at 3 points); that is left in the time.
    slow, fast = compare(
        "time per image-visit",
        reference,
        lambda: learn(model, train, params),
        (group * visits,) * 2,
        runs,
        model.device,
    )
    flops = count_flops(lambda: forward_backward(model, group)) / group
    top = ceiling(model.device, model.dtype, size)
    print(
        f"work per visit {flops / 1e9:.3f} GFLOP; ours {flops / fast / 1e9:.0f} GFLOP/s, "
        f"{100 * flops / fast / top:.0f} % of the matrix-multiply ceiling of {top / 1e9:.0f} GFLOP/s"
    )
    return slow / fast


def forward_backward(model: LatentDiffusion, group: int) -> None:
    z = torch.randn(group, *model.latent_shape, device=model.device)
    c = torch.randn(group, 5, model.width, device=model.device, requires_grad=True)
    t = torch.randint(0, 1000, (group,), device=model.device)
    model.predict(z, t, c).square().sum().backward()  # FlopCounterMode cannot follow autograd.grad


def to_equal_loss(
    model: LatentDiffusion, train: ImageSet, params: ImageEmbeddingsParams, visits: int, ratio: float
) -> None:
    """Visits that each needs for the reference's final loss; `ratio` converts them into time."""
    published = Published(model, train, params.num_tokens)
    posterior = model.encode(torch.from_numpy(train.images))
    heldout = heldout_draws(model, posterior, train.ids, params)
    target = math.inf
    for visit in range(1, visits + 1):
        published.step()
        published.step()
        if visit % max(1, visits // 20) == 0:
            target = heldout(published.embeddings()).mean().item()
            print(f"reference: held-out loss {target:.5f} after {visit} visits per image", flush=True)
    for n in (n for n in VISITS if n <= max(visits, VISITS[0])):
        loss = learn(model, train, params.model_copy(update={"num_visits": n}))
        print(f"ours: held-out loss {loss:.5f} after {n} visits", flush=True)
        if loss <= target:
            print(f"time to the reference's loss: ratio {visits / n * ratio:.0f} (n = 1)")
            return
    print("ours did not reach the reference's loss")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, runs=5)
    parser.add_argument("--block", default="embeddings", help="block of invert in params.yaml")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="ours; else params.yaml's"
    )
    parser.add_argument("--lr", type=float, help="of ours; else params.yaml's")
    parser.add_argument("--sd15", type=int, help="pixels: Stable Diffusion 1.5's architecture instead")
    parser.add_argument("--steps", type=int, help="visits of the paired timing; else params.yaml's")
    parser.add_argument("--visits", type=int, default=0, help="the reference's full schedule; 0: skip it")
    args = parser.parse_args(arguments)
    all_params = load_params(args.params)
    block = all_params.invert[args.block]
    assert isinstance(block, ImageEmbeddingsParams)
    group, runs, size, steps = (4, 1, 64, 2) if args.tiny else (GROUP, args.runs, None, args.steps)
    params = block.model_copy(update={"num_visits": steps or block.num_visits, "lr": args.lr or block.lr})
    if args.sd15:
        model, train = random_sd15(all_params, args.dtype, group, args.sd15)
    else:
        model, train = bundled(all_params, args.dtype, group)
    print(f"{machine(model.device)}; ours in {model.params.dtype}")
    ratio = per_visit(model, train, params, runs, size)
    if args.visits:
        to_equal_loss(model, train, params, args.visits, ratio)


if __name__ == "__main__":
    main()
