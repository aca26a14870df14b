"""What the three pre-training scripts share: data, schedule, and a training loop that resumes."""

import argparse
import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dinv.execution.device import computes_bfloat16

FIRST_PRETRAINING_IMAGE = 10_000  # the labelled task is drawn from the images before it
IMAGE_SIZE = 32


def argument_parser(doc: str, steps: int, batch_size: int, lr: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="idx3 file of the train split")
    parser.add_argument("--output", type=Path, required=True, help="model folder")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch-size", type=int, default=batch_size)
    parser.add_argument("--lr", type=float, default=lr)
    return parser


def parse_arguments(doc: str, steps: int, batch_size: int, lr: float) -> argparse.Namespace:
    return argument_parser(doc, steps, batch_size, lr).parse_args()


def load_pretraining_images(path: Path) -> torch.Tensor:
    """The pre-training images, float32 [N, 1, 32, 32] in [-1, 1], zero-padded from 28x28."""
    with gzip.open(path) as file:
        raw = file.read()
    images = torch.frombuffer(bytearray(raw[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)
    padded = F.pad(images[FIRST_PRETRAINING_IMAGE:], (2, 2, 2, 2))
    return padded.float() / 127.5 - 1


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


def train(
    model: torch.nn.Module,
    loss_of: Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    num_images: int,
    name: str,
    args: argparse.Namespace,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
) -> None:
    """AdamW with warm-up and linear decay; checkpoints every 250 steps beside the output.

    `loss_of(step, ids)` gives the loss and the figure to report.
    """
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, betas, weight_decay=weight_decay)
    checkpoint = Checkpoint(args.output.with_suffix(f".{name}.ckpt"), model, optimizer)
    model.train()
    smooth = None
    for step in _steps(checkpoint.load(), args):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        loss, figure = loss_of(step, batch_ids(num_images, step, args.batch_size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = figure.item() if smooth is None else 0.995 * smooth + 0.005 * figure.item()
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            checkpoint.save(step + 1)
            tqdm.write(f"{name} step {step + 1} of {args.steps}: {smooth:.5f}")
    model.eval()


def _steps(first: int, args: argparse.Namespace) -> Iterator[int]:
    started = time.time()
    bar = tqdm(range(first, args.steps), initial=first, total=args.steps, mininterval=20)
    for step in bar:
        yield step
        rate = (step + 1 - first) * args.batch_size / (time.time() - started)
        bar.set_postfix_str(f"{rate:.0f} images/s", refresh=False)
