"""Embeddings of all classes and an adapter of the UNet learned together, and resuming."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion, Posterior
from dinv.diffusion.lora import adapter_weights, with_new_adapter
from dinv.errors import UserError
from dinv.gan.checkpoint import Checkpoint, Tensors, flat, nested
from dinv.inversion.class_embeddings import ClassEmbeddingsParams
from dinv.inversion.invert import (
    NUM_HELDOUT_DRAWS,
    ImageStream,
    denoising_loss,
    heldout_visits,
    initial_embeddings,
    learning_rate,
)
from dinv.rng import generator
from dinv.section import PositiveFloat, PositiveInt


class ClassLoraParams(ClassEmbeddingsParams):
    """`num_visits` are steps in all, each over `batch_size` images of any class; `lr` is the embeddings'."""

    has_adapter: ClassVar[bool] = True
    rank: PositiveInt
    alpha: PositiveFloat
    adapter_lr: PositiveFloat


@dataclass(frozen=True)
class Classes:
    """The images that are learned from.

    Attributes:
        posterior: of their latents, float32 [N, c, h, w] each, on the CPU.
        rows: int64 [N], which of the M classes with images each is of.
        labels: int64 [M], the numbers of these classes.
        names: of the M classes.
    """

    posterior: Posterior
    rows: torch.Tensor
    labels: torch.Tensor
    names: list[str]

    @classmethod
    def of(
        cls,
        model: LatentDiffusion,
        images: torch.Tensor,
        labels: torch.Tensor,
        class_names: Sequence[str],
        batch_size: int,
    ) -> "Classes":
        """Encode uint8 images [N, H, W, C] with labels [N]; classes without images are left out."""
        parts = [model.encode(batch) for batch in images.split(batch_size)]
        mean, std = torch.cat([p.mean.cpu() for p in parts]), torch.cat([p.std.cpu() for p in parts])
        there, rows = labels.unique(return_inverse=True)
        return cls(Posterior(mean, std), rows, there, [class_names[k] for k in there.tolist()])


class Trainer:
    """c*, A*, B* = argmin E_{i, eps, t} || eps - eps_theta+BA(z_t^i, t, c_y(i)) ||^2, theta frozen.

    Every step's randomness is keyed by its number.

    Attributes:
        c: embeddings of the classes, [M, K, D].
        weights: the adapter's, by name.
        losses: of every step, [num_visits], NaN where it is not taken yet.
        heldout: loss on fixed draws per class, [measurements, M], likewise.
    """

    def __init__(self, model: LatentDiffusion, classes: Classes, params: ClassLoraParams):
        self.classes, self.params, self.step = classes, params, 0
        self.model = with_new_adapter(model, params.rank, params.alpha, params.seed)
        self.weights = adapter_weights(self.model)
        streams = [ImageStream(params, f"class {name}") for name in classes.names]
        self.c = initial_embeddings(model, streams, params).requires_grad_()
        self.learned = [self.c, *self.weights.values()]
        self.optimizer = torch.optim.AdamW(
            [{"params": [self.c]}, {"params": self.learned[1:]}],
            betas=(params.adam_beta1, params.adam_beta2),
            weight_decay=params.weight_decay,
        )
        self.losses = torch.full((params.num_visits,), torch.nan)
        self.measured = heldout_visits(params.num_visits)
        self.heldout = torch.full((len(self.measured), len(classes.names)), torch.nan)
        self._measure_if_due()

    def take_step(self) -> None:
        """One step of the optimiser on images of any class."""
        decay = learning_rate(self.params, self.step) / self.params.lr
        for group, lr in zip(
            self.optimizer.param_groups, (self.params.lr, self.params.adapter_lr), strict=True
        ):
            group["lr"] = decay * lr
        loss = self._loss()
        # float16 gradients underflow unless scaled; AdamW does not see the scale.
        scale = 1024.0 if self.model.dtype == torch.float16 else 1.0
        gradients = torch.autograd.grad(loss * scale, self.learned)
        for tensor, gradient in zip(self.learned, gradients, strict=True):
            tensor.grad = gradient / scale
        self.optimizer.step()
        self.losses[self.step] = loss.detach().cpu()
        self.step += 1
        self._measure_if_due()

    def _loss(self) -> torch.Tensor:
        """Mean denoising loss of the step's images."""
        model, n = self.model, self.params.batch_size
        rows, stream = self._order(self.step), ImageStream(self.params, f"step {self.step}")
        posterior, device = self.classes.posterior, model.device
        z0 = posterior.mean[rows]
        if self.params.latents == "sample":
            z0 = z0 + posterior.std[rows] * self._noise(stream)
        eps = self._noise(stream)
        t = torch.tensor([stream.timestep(i, model.num_train_timesteps) for i in range(n)], device=device)
        c = self.c[self.classes.rows[rows].to(device)]
        return denoising_loss(model, z0.to(device), c, eps.to(device), t).mean()

    def _noise(self, stream: ImageStream) -> torch.Tensor:
        return torch.stack([stream.noise(self.model.latent_shape) for _ in range(self.params.batch_size)])

    def _order(self, step: int) -> torch.Tensor:
        """The step's images: all of them in a new random order, again and again."""
        n, size = len(self.classes.rows), self.params.batch_size
        rounds = range(step * size // n, ((step + 1) * size - 1) // n + 1)
        keys = [generator(self.params.seed, "lora-order", number) for number in rounds]
        rows = torch.cat([torch.randperm(n, generator=g) for g in keys])
        first = step * size - rounds[0] * n
        return rows[first : first + size]

    def _measure_if_due(self) -> None:
        if self.step in self.measured:
            row = self.measured.index(self.step)
            self.heldout[row] = torch.stack([self._of_class(k) for k in range(len(self.classes.names))])

    @torch.no_grad()
    def _of_class(self, k: int) -> torch.Tensor:
        """Loss on 8 evenly spaced timesteps with fixed noise, of the class's images in turn; on the CPU."""
        n, model, members = NUM_HELDOUT_DRAWS, self.model, torch.nonzero(self.classes.rows == k)[:, 0]
        g = generator(self.params.seed, "heldout", f"class {self.classes.names[k]}")
        eps = torch.randn((n, *model.latent_shape), generator=g)
        t = ((torch.arange(n) + 0.5) / n * model.num_train_timesteps).long()
        z0 = self.classes.posterior.mean[members[torch.arange(n) % len(members)]]
        batches = zip(*(x.to(model.device).split(self.params.batch_size) for x in (z0, eps, t)), strict=True)
        losses = [
            denoising_loss(model, z, self.c[k].expand(len(z), -1, -1), e, step) for z, e, step in batches
        ]
        return torch.cat(losses).mean().cpu()

    @cached_property
    def _kept(self) -> dict[str, torch.Tensor]:
        return {"c": self.c, **self.weights}

    def state(self) -> Tensors:
        """All that later steps depend on."""
        state = {"step": torch.tensor(self.step), "losses": self.losses, "heldout": self.heldout}
        state |= flat("learned", self._kept)
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= flat(f"optimizer.{index}", values)
        return state

    def restore(self, state: Tensors) -> None:
        """Go on from a state."""
        self.step, self.losses, self.heldout = int(state["step"]), state["losses"], state["heldout"]
        for name, value in nested("learned", state).items():
            self._kept[name].data.copy_(value)
        whole = self.optimizer.state_dict()
        indices = [i for group in whole["param_groups"] for i in group["params"]]
        whole["state"] = {i: nested(f"optimizer.{i}", state) for i in indices} if self.step else {}
        self.optimizer.load_state_dict(whole)


def train(
    model: LatentDiffusion,
    classes: Classes,
    params: ClassLoraParams,
    checkpoint: Checkpoint,
    advance: Callable[[int], None] = lambda _: None,
) -> Trainer:
    """All steps that are left; `advance(n)` is called as n are done.

    Raises:
        UserError: a loss is not finite.
    """
    trainer, found = Trainer(model, classes, params), checkpoint.read()
    if found is not None:
        trainer.restore(found)
        advance(trainer.step)
    for _ in range(trainer.step, params.num_visits):
        trainer.take_step()
        if not torch.isfinite(trainer.losses[trainer.step - 1]):
            raise UserError(
                f"class_lora: the loss of step {trainer.step} is not finite; lower lr and adapter_lr, or set "
                "model.dtype to float32 or bfloat16"
            )
        checkpoint.write_if_due(trainer.state)
        advance(1)
    return trainer
