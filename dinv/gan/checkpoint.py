"""Checkpoints of one long training, in the scratch folder; the finished part takes their place."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dinv.files import atomic_write

Tensors = dict[str, torch.Tensor]
SECONDS = 30.0  # between checkpoints; they change no result


class Checkpoint:
    """One file, written whole or not at all; its name is a digest of all that determines the result."""

    def __init__(self, path: Path):
        self.path, self._last = path, time.monotonic()

    def read(self) -> Tensors | None:
        """The last state, or None; a damaged one counts as none and is named."""
        if not self.path.is_file():
            return None
        try:
            return load_file(self.path)
        except (SafetensorError, OSError) as error:
            tqdm.write(
                f"{self.path}: damaged checkpoint ({' '.join(str(error).split())}); training starts anew"
            )
            return None

    def write_if_due(self, state: Callable[[], Tensors]) -> None:
        """Write `state()` if the last one is old enough."""
        if time.monotonic() - self._last >= SECONDS:
            with atomic_write(self.path) as temporary:
                save_file(state(), temporary)
            self._last = time.monotonic()

    def remove(self) -> None:
        """Once the result is stored."""
        self.path.unlink(missing_ok=True)


def flat(name: str, values: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies of tensors on the CPU, with a name put before theirs."""
    return {f"{name}.{key}": value.detach().cpu().contiguous().clone() for key, value in values.items()}


def nested(name: str, tensors: Tensors) -> Tensors:
    """What `flat` put under a name."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
