"""One conditioning embedding for every class, learned from all its images: the token of DA-Fusion.

Textual inversion (Gal et al. 2023, arXiv 2208.01618) as Trabucco et al. (2024, arXiv 2302.07944) use it, but
without a text encoder: the K tokens go straight to cross-attention, as in Diffusion Inversion.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.diffusion.latent_diffusion import LatentDiffusion, Posterior
from dinv.errors import UserError
from dinv.execution.parts import PartStore, Plan, to_bytes
from dinv.execution.run import run_parts
from dinv.files import digest_of, part_paths
from dinv.images.image_set import ImageSetReader
from dinv.inversion.bank import (
    EMBEDDINGS,
    EmbeddingBank,
    bank_statistics,
    load_part,
    loss_curves,
    save_bank,
    save_statistics,
)
from dinv.inversion.base import Loss, OpenModel, Place
from dinv.inversion.invert import (
    NUM_HELDOUT_DRAWS,
    ImageEmbeddingsParams,
    ImageStream,
    denoising_loss,
    heldout_visits,
    initial_embeddings,
    interval_means,
    learning_rate,
)
from dinv.rng import generator
from dinv.section import PositiveInt

PART_SIZE = 1  # class; a constant of the format, not a setting


class ClassEmbeddingsParams(ImageEmbeddingsParams):
    """As for an embedding per image; `num_visits` are steps per class, each over `batch_size` images."""

    batch_size: PositiveInt


@dataclass(frozen=True)
class ClassTask:
    """All images of one class, uint8 [B, H, W, C] at the model's resolution."""

    images: NDArray[np.uint8]
    label: int
    name: str


class ClassEmbeddings:
    """Writes parts of an EmbeddingBank whose rows are classes."""

    Params = ClassEmbeddingsParams

    @staticmethod
    def learn(params: ClassEmbeddingsParams, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """One embedding per class that has images; its digest covers all of them, in their order."""
        key = [*place.key, params.model_dump(exclude={"method"})]
        worker = partial(ClassWorker, place.open_model, params)
        run_parts(
            make_plan(real, key, params), PartStore("invert"), EMBEDDINGS, worker, place.execution, output
        )
        parts = part_paths(output, EMBEDDINGS.suffix, "embeddings")
        save_statistics(bank_statistics(map(load_part, parts), len(real.class_names)), output)
        return loss_curves(map(load_part, parts))


def make_plan(real: ImageSetReader, key: list[object], params: ClassEmbeddingsParams) -> Plan:
    """Every class that has images, a part each."""
    labels = np.unique(real.labels).tolist()

    def members(label: int) -> list[int]:
        """Rows of a class, in an order that does not depend on that of the image set."""
        return sorted(np.flatnonzero(real.labels == label).tolist(), key=lambda row: real.ids[row])

    def digests(rows: Sequence[int]) -> list[str]:
        return [digest_of(real.take(members(labels[row])).digests(key)) for row in rows]

    def task(rows: Sequence[int]) -> ClassTask:
        (row,) = rows
        label = labels[row]
        return ClassTask(real.take(members(label)).images, label, real.class_names[label])

    return Plan("invert class", len(labels), PART_SIZE, digests, task, "step", params.num_visits)


class ClassWorker:
    """Task -> bytes of an embedding part."""

    def __init__(self, open_model: OpenModel, params: ClassEmbeddingsParams):
        self.model, self.params = open_model(), params

    def compute(self, task: ClassTask, advance: Callable[[int], None]) -> bytes:
        """Learn the class's embedding."""
        bank = learn_class(
            self.model, torch.from_numpy(task.images), task.label, task.name, self.params, advance
        )
        stored = bank.to(getattr(torch, self.params.storage_dtype))
        return to_bytes(lambda path: save_bank(stored, path))


def learn_class(
    model: LatentDiffusion,
    images: torch.Tensor,
    label: int,
    name: str,
    params: ClassEmbeddingsParams,
    advance: Callable[[int], None] = lambda _: None,
) -> EmbeddingBank:
    """c* = argmin_c E_{i, eps, t} || eps - eps_theta(z_t^i, t, c) ||^2 over the class's images [N, H, W, C].

    Returns a bank of one row. Nothing of other classes enters, so the order of classes does not matter.
    """
    posterior = _encode(model, images, params.batch_size)
    stream = ImageStream(params, f"class {name}")
    c = initial_embeddings(model, [stream], params).requires_grad_()
    betas = (params.adam_beta1, params.adam_beta2)
    optimizer = torch.optim.AdamW([c], params.lr, betas, weight_decay=params.weight_decay)
    measured, order = heldout_visits(params.num_visits), _Order(len(images), params.seed, name)
    train_loss, heldout_loss = [], [_heldout(model, posterior, c, name, params)]
    for step in range(params.num_visits):
        optimizer.param_groups[0]["lr"] = learning_rate(params, step)
        rows = order.take(params.batch_size)
        batch = Posterior(posterior.mean[rows], posterior.std[rows])
        train_loss.append(_step(model, batch, stream, c, optimizer, step))
        if step + 1 in measured:
            heldout_loss.append(_heldout(model, posterior, c, name, params))
        advance(1)
    if not torch.isfinite(c).all():
        raise UserError(
            f"invert: the embedding of class {name!r} diverged (not finite); lower its lr, or set "
            "model.dtype to float32 or bfloat16"
        )
    ends, means = interval_means(torch.stack(train_loss).cpu())
    visits, losses = torch.tensor(measured), torch.stack(heldout_loss).cpu()
    return EmbeddingBank(c.detach().cpu(), torch.tensor([label]), [name], ends, means, visits, losses)


class _Order:
    """Rows of the class's images, all of them in a new random order, again and again."""

    def __init__(self, n: int, seed: int, name: str):
        self._n, self._generator, self._left = n, generator(seed, "class-order", name), torch.empty(0).long()

    def take(self, size: int) -> torch.Tensor:
        while len(self._left) < size:
            more = torch.randperm(self._n, generator=self._generator)
            self._left = torch.cat([self._left, more])
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def _encode(model: LatentDiffusion, images: torch.Tensor, size: int) -> Posterior:
    parts = [model.encode(batch) for batch in images.split(size)]
    return Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))


def _step(
    model: LatentDiffusion,
    batch: Posterior,
    stream: ImageStream,
    c: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> torch.Tensor:
    """One optimiser step on a batch of the class's images; returns the mean loss [1]."""
    n, shape, device = len(batch.mean), model.latent_shape, model.device
    z0 = batch.mean
    if stream.params.latents == "sample":
        z0 = z0 + batch.std * torch.stack([stream.noise(shape) for _ in range(n)]).to(device)
    eps = torch.stack([stream.noise(shape) for _ in range(n)]).to(device)
    t = [stream.timestep(step * n + i, model.num_train_timesteps) for i in range(n)]
    loss = denoising_loss(model, z0, c.expand(n, -1, -1), eps, torch.tensor(t, device=device)).mean()
    # float16 gradients underflow unless scaled; AdamW does not see the scale.
    scale = 1024.0 if model.dtype == torch.float16 else 1.0
    (gradient,) = torch.autograd.grad(loss * scale, c)
    c.grad = gradient / scale
    optimizer.step()
    return loss.detach()[None]


@torch.no_grad()
def _heldout(
    model: LatentDiffusion,
    posterior: Posterior,
    c: torch.Tensor,
    name: str,
    params: ClassEmbeddingsParams,
) -> torch.Tensor:
    """Denoising loss [1] on 8 evenly spaced timesteps with fixed noise, of the class's images in turn."""
    n, g = NUM_HELDOUT_DRAWS, generator(params.seed, "heldout", f"class {name}")
    t = ((torch.arange(n) + 0.5) / n * model.num_train_timesteps).long().to(model.device)
    eps = torch.randn((n, *model.latent_shape), generator=g).to(model.device)
    z0 = posterior.mean[torch.arange(n) % len(posterior.mean)]
    losses = [denoising_loss(model, z0[i : i + 1], c, eps[i : i + 1], t[i : i + 1]) for i in range(n)]
    return torch.stack(losses).mean(0)
