"""Diffusion Inversion, stage 1 (Zhou, Sahak, Ba 2023): learn one embedding per image.

c_i* = argmin_c E_{eps ~ N(0, I), t ~ U{0..T-1}} || eps - eps_theta(z_t, t, c) ||^2, theta frozen.
Every image has its own optimiser state and its own random stream: its embedding depends neither
on which images share its batch nor on how many.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion, Posterior
from dinv.errors import UserError
from dinv.inversion.bank import EmbeddingBank, concatenate
from dinv.inversion.base import MethodParams
from dinv.rng import generator
from dinv.section import Beta, NonNegativeFloat, PositiveFloat, PositiveInt, Seed

NUM_HELDOUT_DRAWS = 8
NUM_HELDOUT_POINTS = 3  # each costs 8 forward passes per image
NUM_CURVE_POINTS = 40
_GOLDEN = (math.sqrt(5) - 1) / 2


class ImageEmbeddingsParams(MethodParams):
    """How an embedding is learned for every image."""

    num_tokens: PositiveInt
    init: Literal["normal", "empty"]
    init_std: NonNegativeFloat
    num_visits: PositiveInt
    lr: PositiveFloat
    lr_schedule: Literal["constant", "cosine"]
    adam_beta1: Beta
    adam_beta2: Beta
    weight_decay: NonNegativeFloat
    timestep_sampling: Literal["uniform", "stratified"]
    latents: Literal["sample", "mean"]
    storage_dtype: Literal["float32", "float16"]
    seed: Seed


def denoising_loss(
    model: LatentDiffusion,
    z0: torch.Tensor,
    c: torch.Tensor,
    eps: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """|| eps - eps_theta(z_t, t, c) ||^2 per image, averaged over elements: [B].

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps; for v-prediction models v takes eps' place.
    """
    error = model.predict(model.add_noise(z0, eps, t), t, c) - model.target(z0, eps, t)
    return error.square().flatten(1).mean(1)


@dataclass
class ImageStream:
    """All random draws of one image's inversion, keyed by (seed, image id)."""

    params: ImageEmbeddingsParams
    image_id: str

    def __post_init__(self) -> None:
        self._generator = generator(self.params.seed, "invert", self.image_id)
        self._offset = torch.rand((), generator=self._generator).item()

    def init(self, shape: tuple[int, int]) -> torch.Tensor:
        """N(0, init_std^2), float32 [K, D]."""
        g = generator(self.params.seed, "invert-init", self.image_id)
        return self.params.init_std * torch.randn(shape, generator=g)

    def timestep(self, visit: int, num_train_timesteps: int) -> int:
        """t of one visit: uniform, or stratified by the golden-ratio sequence from a random start."""
        if self.params.timestep_sampling == "stratified":
            u = (self._offset + visit * _GOLDEN) % 1.0
        else:
            u = torch.rand((), generator=self._generator).item()
        return min(int(u * num_train_timesteps), num_train_timesteps - 1)

    def noise(self, shape: tuple[int, int, int]) -> torch.Tensor:
        """N(0, I) of the next visit."""
        return torch.randn(shape, generator=self._generator)


def learning_rate(params: ImageEmbeddingsParams, visit: int) -> float:
    """Learning rate of a visit (0-based): constant, or a half cosine from lr to 0."""
    if params.lr_schedule == "constant":
        return params.lr
    return params.lr * 0.5 * (1 + math.cos(math.pi * visit / params.num_visits))


def initial_embeddings(
    model: LatentDiffusion, streams: Sequence[ImageStream], params: ImageEmbeddingsParams
) -> torch.Tensor:
    """Where learning starts, float32 [B, K, D]: normal noise, around the empty prompt or zero."""
    shape = (params.num_tokens, model.width)
    c = torch.stack([stream.init(shape) for stream in streams]).to(model.device)
    return c + model.empty_prompt_embeds(params.num_tokens) if params.init == "empty" else c


def invert(
    model: LatentDiffusion,
    images: torch.Tensor,
    labels: torch.Tensor,
    ids: Sequence[str],
    params: ImageEmbeddingsParams,
    micro_batch: int,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbeddingBank:
    """Learn the embeddings of uint8 images [N, H, W, C] of the model's resolution.

    `micro_batch` images are learned together; it changes speed and memory only (up to rounding).
    `advance(n)` is called as n image-visits are done.
    """
    banks = []
    for start in range(0, len(ids), micro_batch):
        rows = slice(start, start + micro_batch)
        banks.append(_invert_together(model, images[rows], labels[rows], ids[rows], params, advance))
    return concatenate(banks)


def _invert_together(
    model: LatentDiffusion,
    images: torch.Tensor,
    labels: torch.Tensor,
    ids: Sequence[str],
    params: ImageEmbeddingsParams,
    advance: Callable[[int], None],
) -> EmbeddingBank:
    posterior = model.encode(images)
    streams = [ImageStream(params, image_id) for image_id in ids]
    c = initial_embeddings(model, streams, params).requires_grad_()
    betas = (params.adam_beta1, params.adam_beta2)
    optimizer = torch.optim.AdamW([c], params.lr, betas, weight_decay=params.weight_decay)
    heldout = heldout_draws(model, posterior, ids, params)
    measured = heldout_visits(params.num_visits)
    train_loss, heldout_loss = [], [heldout(c)]
    for visit in range(params.num_visits):
        optimizer.param_groups[0]["lr"] = learning_rate(params, visit)
        train_loss.append(_visit(model, posterior, streams, c, optimizer, visit))
        if visit + 1 in measured:
            heldout_loss.append(heldout(c))
        advance(len(ids))
    if not torch.isfinite(c).all():
        raise UserError(
            f"invert: the embedding of {ids[0]!r} or a batch mate diverged (not finite); lower "
            "invert.lr, or set model.dtype to float32 or bfloat16"
        )
    ends, means = interval_means(torch.stack(train_loss).cpu())
    return EmbeddingBank(
        c.detach().cpu(),
        labels.cpu(),
        list(ids),
        ends,
        means,
        torch.tensor(measured),
        torch.stack(heldout_loss).cpu(),
    )


def _visit(
    model: LatentDiffusion,
    posterior: Posterior,
    streams: Sequence[ImageStream],
    c: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    visit: int,
) -> torch.Tensor:
    """One optimiser step for every image of the batch; returns the losses [B]."""
    params, device = streams[0].params, model.device
    steps = [s.timestep(visit, model.num_train_timesteps) for s in streams]
    t = torch.tensor(steps, device=device)
    eps = torch.stack([s.noise(model.latent_shape) for s in streams]).to(device)
    z0 = posterior.mean
    if params.latents == "sample":
        xi = torch.stack([s.noise(model.latent_shape) for s in streams]).to(device)
        z0 = z0 + posterior.std * xi
    loss = denoising_loss(model, z0, c, eps, t)
    # The sum, not the mean: an image's gradient must not depend on how many share its batch.
    # float16 gradients of one image underflow unless scaled; AdamW does not see the scale.
    scale = 1024.0 if model.dtype == torch.float16 else 1.0
    (gradient,) = torch.autograd.grad(loss.sum() * scale, c)
    c.grad = gradient / scale
    optimizer.step()
    return loss.detach()


def interval_means(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends int64 [P] of about 40 intervals of visits, and means over them, [P, N], of losses [V, N]."""
    interval = max(1, len(losses) // NUM_CURVE_POINTS)
    ends = torch.arange(interval, len(losses) + 1, interval)
    return ends, losses[: ends[-1]].view(len(ends), interval, -1).mean(1)


def heldout_visits(num_visits: int) -> list[int]:
    """After how many visits the held-out loss is measured: at the start, in the middle, at the end."""
    last = NUM_HELDOUT_POINTS - 1
    return sorted({round(i * num_visits / last) for i in range(NUM_HELDOUT_POINTS)})


def heldout_draws(
    model: LatentDiffusion, posterior: Posterior, ids: Sequence[str], params: ImageEmbeddingsParams
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return c -> denoising loss [B] on 8 evenly spaced timesteps with fixed noise per image."""
    edges = torch.arange(NUM_HELDOUT_DRAWS) + 0.5
    timesteps = (edges / NUM_HELDOUT_DRAWS * model.num_train_timesteps).long()
    shape = (NUM_HELDOUT_DRAWS, *model.latent_shape)
    noise = [torch.randn(shape, generator=generator(params.seed, "heldout", i)) for i in ids]
    eps = torch.stack(noise, dim=1).to(model.device)

    @torch.no_grad()
    def measure(c: torch.Tensor) -> torch.Tensor:
        losses = [
            denoising_loss(model, posterior.mean, c, e, t.to(model.device).expand(len(c)))
            for e, t in zip(eps, timesteps, strict=True)
        ]
        return torch.stack(losses).mean(0)

    return measure
