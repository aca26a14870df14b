"""Open the frozen model that the download stage recorded."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model, model_digest
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from stages.runner import read_json

RECORD = Path("data/model.json")


class FrozenModel:
    """The model of params.yaml: found and checked against the record, and loaded, when it is needed."""

    def __init__(self, params: ModelParams, execution: ExecutionParams):
        self.params, self.execution = params, execution

    @cached_property
    def folder(self) -> Path:
        """Where the model's files are, on this machine."""
        return fetch_model(self.params, local_files_only=True)

    @cached_property
    def digest(self) -> str:
        """Digest of the model's files; raises UserError if they are not those that download saw."""
        digest = model_digest(self.folder)
        if digest != read_json(RECORD)["sha256"]:
            raise UserError(
                f"model.path = {self.params.path!r}: its files changed since the download stage recorded "
                "them; run dvc repro --force download, then dvc repro"
            )
        return digest

    @cached_property
    def loaded(self) -> LatentDiffusion:
        """The model in this process."""
        return load(self.folder, self.params, self.execution.device)

    def open(self) -> LatentDiffusion:
        """The model in this process, loaded once."""
        return self.loaded

    @property
    def opener(self) -> Callable[[], LatentDiffusion]:
        """What a worker calls to have the model: this process's own, or loaded where it runs."""
        if self.execution.backend == "local":
            return self.open
        return partial(load, self.folder.resolve(), self.params, self.execution.device)


def load(folder: Path, params: ModelParams, device: str) -> LatentDiffusion:
    """Load on the device of the machine this is called on."""
    return load_model(folder, params, resolve_device(device))
