"""Renderers whose model has the low-rank adapter that was learned with the conditions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from dinv.diffusion.lora import FILE, require_peft, with_adapter
from dinv.features.watched import FrozenNetwork
from dinv.files import file_digest
from dinv.strategies.base import Inputs, OpenModel, Renderer


@dataclass(frozen=True)
class WithAdapter:
    """Another renderer, for which the model is opened with an adapter; others still have the model without.

    Inputs: those of the other renderer.
    """

    uses_model: ClassVar[bool] = True
    renderer: Renderer
    adapter: FrozenNetwork
    kind: str = field(init=False)  # digests see the fields of `renderer`, not its type

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", type(self.renderer).__name__)

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model and the adapter."""
        return self.renderer.open(lambda: with_adapter(open_model(), self.adapter.place))


def find_adapter(folder: Path, user: str) -> FrozenNetwork | None:
    """The adapter that method `class_lora` left in a folder, if it is one of its.

    Raises:
        UserError: there is one, and peft is not installed.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    require_peft(user)
    return FrozenNetwork("adapter", file_digest(path), path)
