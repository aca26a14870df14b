"""What the pre-training scripts share: arguments, schedule, and a training loop that resumes."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dinv.errors import UserError
from dinv.execution.device import computes_bfloat16
from models.pretraining.domain import Training

Model = TypeVar("Model", bound=torch.nn.Module)
EMA_DECAY = 0.999
WEIGHTS = "diffusion_pytorch_model.safetensors"
LossOf = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def argument_parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--domain", type=Path, required=True, help="file of models/domains")
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="idx3 (.gz) or Parquet file, or the folder that sources are below",
    )
    parser.add_argument("--output", type=Path, required=True, help="model folder")
    parser.add_argument("--steps", type=int, help="instead of the domain's; may change between runs")
    parser.add_argument("--batch-size", type=int, help="instead of the domain's")
    parser.add_argument("--checkpoint-every", type=int, default=250, help="steps")
    return parser


def settings(training: Training, args: argparse.Namespace) -> Training:
    """The domain's settings, with what the command line says instead."""
    given = {"steps": args.steps, "batch_size": args.batch_size}
    return training.model_copy(update={k: v for k, v in given.items() if v is not None})


def mixed_precision() -> AbstractContextManager[object]:
    """bfloat16 autocast where the processor computes it, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computes_bfloat16(torch.device("cpu")))


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then linear decay to zero."""
    return peak * min((step + 1) / warmup, (steps - step) / max(steps - warmup, 1))


def batch_ids(num_images: int, step: int, batch_size: int) -> torch.Tensor:
    """Ids of one step's batch: a fresh permutation each epoch, whatever step the run resumes at."""
    epoch, i = divmod(step, num_images // batch_size)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(epoch))
    return order[i * batch_size : (i + 1) * batch_size]


def start_from(folder: Path, part: str, network: torch.nn.Module) -> None:
    """Take over a part, `vae` or `unet`, of another model: much of what it does is the same everywhere."""
    try:
        tensors = load_file(folder / part / WEIGHTS)
        network.load_state_dict({k: v.float() for k, v in tensors.items()})
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--start {folder}: has no {part} of this domain's widths ({reason})") from error


class Checkpoint:
    """Tensors of modules and optimiser in one safetensors file, replaced atomically."""

    def __init__(self, path: Path, modules: torch.nn.Module, optimizer: torch.optim.Optimizer):
        self.path, self.modules, self.optimizer = path, modules, optimizer

    def save(self, step: int) -> None:
        tensors = {f"model.{k}": v for k, v in self.modules.state_dict().items()}
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
        self.modules.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".", 2)
                state.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # The fused AdamW walks through memory: moments must lie as their weights do (channels_last).
        for weight, moments in self.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                moments[name] = torch.empty_like(weight).copy_(moments[name])
        with safe_open(self.path, "pt") as file:
            return int(file.metadata()["step"])


class Trained(torch.nn.Module):
    """A model and the moving average of its weights."""

    def __init__(self, model: torch.nn.Module, ema_decay: float) -> None:
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=self._update)
        self.ema_decay = ema_decay

    def _update(self, average: Any, current: Any, num_averaged: torch.Tensor | int) -> None:
        """Forget faster early on, or a short run's average would still hold its first weights."""
        n = int(num_averaged)
        get_ema_multi_avg_fn(min(self.ema_decay, (1 + n) / (10 + n)))(average, current, n)


def train(
    model: Model,
    loss_of: LossOf,
    num_images: int,
    name: str,
    training: Training,
    args: argparse.Namespace,
    *,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
    ema_decay: float = 0.0,
) -> Model:
    """AdamW with warm-up and linear decay; checkpoints beside the output. Returns the averaged model.

    Args:
        model: what is trained, in place.
        loss_of: ids of a batch -> the loss, and the figure to report.
        num_images: ids run from 0 to this.
        name: of the checkpoint.
        training: steps, batch size, peak learning rate.
        args: output and interval of checkpoints.
        betas: of AdamW.
        weight_decay: of AdamW.
        ema_decay: share of the average that a step keeps; 0 gives the last weights.
    """
    if num_images < training.batch_size:
        raise UserError(f"{args.images}: {num_images} images; a batch takes {training.batch_size}")
    both = Trained(model, ema_decay)
    optimizer = torch.optim.AdamW(
        model.parameters(), training.lr, betas, weight_decay=weight_decay, fused=True
    )
    checkpoint = Checkpoint(args.output.with_suffix(f".{name}.ckpt"), both, optimizer)
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    model.train()
    smooth = None
    for step in _steps(checkpoint.load(), training):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, training.steps, training.lr)
        loss, figure = loss_of(batch_ids(num_images, step, training.batch_size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        both.average.update_parameters(model)
        smooth = figure.item() if smooth is None else 0.995 * smooth + 0.005 * figure.item()
        if (step + 1) % args.checkpoint_every == 0 or step + 1 == training.steps:
            checkpoint.save(step + 1)
            print(f"{name} step {step + 1} of {training.steps}: {smooth:.5f}", flush=True)
    return cast(Model, both.average.module.eval())


def _steps(first: int, training: Training) -> Iterator[int]:
    started = time.time()
    bar = tqdm(range(first, training.steps), initial=first, total=training.steps, mininterval=20)
    for step in bar:
        yield step
        rate = (step + 1 - first) * training.batch_size / (time.time() - started)
        bar.set_postfix_str(f"{rate:.0f} images/s", refresh=False)
