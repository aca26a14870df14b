"""Training the GAN: hinge losses, DiffAugment, a moving average of the generator, and resuming."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from dinv.errors import UserError
from dinv.gan.augment import diff_augment
from dinv.gan.checkpoint import Checkpoint, Tensors, flat, nested
from dinv.gan.networks import Discriminator, Generator
from dinv.rng import derive_seed, generator
from dinv.section import Beta, PositiveFloat, PositiveInt, Section, Seed

SETTLING_BATCHES = 16


class GanSettings(Section):
    """Architecture and training.

    `augmentations` are those of DiffAugment, [] for none. Widths are channels at full size: each network has
    twice as many at half of it, 8 times at most.
    """

    resolution: Literal[16, 32, 64, 128]
    latent_size: PositiveInt
    generator_width: PositiveInt
    discriminator_width: PositiveInt
    augmentations: list[Literal["color", "translation", "cutout"]]
    num_steps: PositiveInt
    num_discriminator_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    lr_generator: PositiveFloat
    lr_discriminator: PositiveFloat
    adam_beta1: Beta
    adam_beta2: Beta
    ema_decay: Beta
    seed: Seed

    @model_validator(mode="after")
    def _each_augmentation_once(self) -> "GanSettings":
        if len(set(self.augmentations)) < len(self.augmentations):
            raise ValueError(f"augmentations = {self.augmentations}: one is there twice; remove it")
        return self


@dataclass(frozen=True)
class Training:
    """Images float32 in [-1, 1], [N, C, H, H], on the device, and labels int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int


def discriminator_loss(real: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    """L_D = E max(0, 1 - D(T(x), y)) + E max(0, 1 + D(T(G(z, y)), y)), from outputs of D, [B] each."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def generator_loss(made: torch.Tensor) -> torch.Tensor:
    """L_G = -E D(T(G(z, y)), y)."""
    return -made.mean()


class Trainer:
    """Both networks, their optimisers and the average; every step's randomness is keyed by its number."""

    def __init__(self, data: Training, settings: GanSettings):
        self.data, self.settings, self.step = data, settings, 0
        self.device, (channels, side, _) = data.images.device, data.images.shape[1:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(settings.seed, "gan-weights"))
            s, m = settings, data.num_classes
            self.G = Generator(s.latent_size, s.generator_width, m, side, channels).to(self.device)
            self.D = Discriminator(s.discriminator_width, m, side, channels).to(self.device)
        self.average = copy.deepcopy(self.G)
        betas = (settings.adam_beta1, settings.adam_beta2)
        self.optimizer_g = torch.optim.Adam(self.G.parameters(), settings.lr_generator, betas)
        self.optimizer_d = torch.optim.Adam(self.D.parameters(), settings.lr_discriminator, betas)
        self.losses = torch.full((settings.num_steps, 2), torch.nan)  # generator, discriminator

    def take_step(self) -> None:
        """Steps of the discriminator, then one of the generator."""
        g = generator(self.settings.seed, "gan", self.step)
        for _ in range(self.settings.num_discriminator_steps):
            loss_d = self._discriminator_step(g)
        y = self.data.labels[self._rows(g)]
        made = self.G(self._latents(g), y)
        loss_g = generator_loss(self.D(self._augmented(made, g), y))
        _descend(self.optimizer_g, loss_g)
        self._update_average()
        self.losses[self.step] = torch.stack([loss_g, loss_d]).detach().cpu()
        self.step += 1

    def _discriminator_step(self, g: torch.Generator) -> torch.Tensor:
        rows = self._rows(g)
        x, y = self.data.images[rows], self.data.labels[rows]
        with torch.no_grad():
            made = self.G(self._latents(g), y)
        loss = discriminator_loss(self.D(self._augmented(x, g), y), self.D(self._augmented(made, g), y))
        _descend(self.optimizer_d, loss)
        return loss

    def settle(self) -> None:
        """Give the average its own statistics of batch norm ("standing statistics", Brock et al. 2019)."""
        norms = [m for m in self.average.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        with torch.no_grad():
            for i in range(SETTLING_BATCHES):
                g = generator(self.settings.seed, "gan-settle", i)
                self.average(self._latents(g), self.data.labels[self._rows(g)])

    def state(self) -> Tensors:
        """All that later steps depend on."""
        parts = {"G": self.G, "D": self.D, "average": self.average}
        state: Tensors = {"step": torch.tensor(self.step), "losses": self.losses}
        for name, module in parts.items():
            state |= flat(name, module.state_dict())
        for name, optimizer in (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d)):
            for index, values in optimizer.state_dict()["state"].items():
                state |= flat(f"{name}.{index}", values)
        return state

    def restore(self, state: Tensors) -> None:
        """Go on from a state."""
        self.step, self.losses = int(state["step"]), state["losses"]
        for name, module in (("G", self.G), ("D", self.D), ("average", self.average)):
            module.load_state_dict(nested(name, state))
        for name, optimizer in (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d)):
            whole = optimizer.state_dict()
            indices = whole["param_groups"][0]["params"]
            whole["state"] = {i: nested(f"{name}.{i}", state) for i in indices} if self.step else {}
            optimizer.load_state_dict(whole)

    def _rows(self, g: torch.Generator) -> torch.Tensor:
        rows = torch.randint(len(self.data.labels), (self.settings.batch_size,), generator=g)
        return rows.to(self.device)

    def _latents(self, g: torch.Generator) -> torch.Tensor:
        shape = (self.settings.batch_size, self.settings.latent_size)
        return torch.randn(shape, generator=g).to(self.device)

    def _augmented(self, images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
        return diff_augment(images, self.settings.augmentations, g)

    @torch.no_grad()
    def _update_average(self) -> None:
        """theta' <- d theta' + (1 - d) theta, d smaller in the first steps, so that it forgets the start."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.G.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def train(
    data: Training, settings: GanSettings, checkpoint: Checkpoint, advance: Callable[[int], None]
) -> Trainer:
    """All steps that are left; `advance(n)` is called as n are done.

    Raises:
        UserError: a loss is not finite.
    """
    trainer = Trainer(data, settings)
    found = checkpoint.read()
    if found is not None:
        trainer.restore(found)
        advance(trainer.step)
    for _ in range(trainer.step, settings.num_steps):
        trainer.take_step()
        if not torch.isfinite(trainer.losses[trainer.step - 1]).all():
            raise UserError(
                f"gan: the losses of step {trainer.step} are not finite; lower lr_generator and "
                "lr_discriminator"
            )
        checkpoint.write_if_due(trainer.state)
        advance(1)
    trainer.settle()
    return trainer


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
