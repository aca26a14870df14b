"""Open the frozen model that the download stage recorded."""

from pathlib import Path

from dinv.config import ExecutionParams, ModelParams
from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model, model_digest
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from stages.runner import read_json

RECORD = Path("data/model.json")


def open_model(params: ModelParams, execution: ExecutionParams) -> tuple[LatentDiffusion, str]:
    """Load the model; return it and the digest of its files.

    Raises:
        UserError: the files are not those that the download stage saw.
    """
    folder = fetch_model(params, local_files_only=True)
    digest = model_digest(folder)
    if digest != read_json(RECORD)["sha256"]:
        raise UserError(
            f"model.path = {params.path!r}: its files changed since the download stage recorded "
            "them; run dvc repro --force download, then dvc repro"
        )
    return load_model(folder, params, resolve_device(execution.device)), digest
