"""The seam for what strategies learn before they generate: stage `invert`.

A method is one file that defines its parameters and the class below, and one line of registry.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.execution.params import ExecutionParams
from dinv.images.image_set import ImageSetReader
from dinv.section import Section

OpenModel = Callable[[], LatentDiffusion]


class MethodParams(Section):
    """What every block of `invert` has."""

    method: str


@dataclass(frozen=True)
class Place:
    """Where learning happens and what identifies the frozen model.

    Attributes:
        open_model: loads the model, once per worker; picklable.
        key: digest of code, model and its settings, to be part of every finished part's.
        execution: device, micro-batch, workers.
    """

    open_model: OpenModel
    key: list[object]
    execution: ExecutionParams


@dataclass(frozen=True)
class Loss:
    """One point of a learning curve: mean loss over images (`kind`: training or heldout) after `step`."""

    kind: str
    step: int
    loss: float


class Method(Protocol):
    """Learns something from the labelled images."""

    Params: ClassVar[type[MethodParams]]

    @staticmethod
    def learn(params: Any, real: ImageSetReader, place: Place, output: Path) -> list[Loss]:
        """Write what was learned into the folder `output`; return its curve.

        `real` are the training images at the model's resolution. Long work goes through run_parts, so that
        it resumes. Raises UserError where the images or the model do not allow it.
        """
        ...
