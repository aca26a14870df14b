"""Load a frozen latent diffusion model in diffusers layout: a folder, or pinned on the hub.

Only safetensors weights are read; nothing is unpickled.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dinv.diffusion.latent_diffusion import LatentDiffusion, read_schedule
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.files import digest_of, file_digest
from dinv.hub import DAMAGED, load_whole, resolve

_USED = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
_OF_VARIATIONS = ("image_encoder", "feature_extractor")  # the latter alone is a safety checker's
_EMPTY_EMBEDS = "empty_prompt_embeds.safetensors"


def fetch_model(params: ModelParams, local_files_only: bool = False) -> Path:
    """The folder that holds the model; one that is pinned on the hub is fetched.

    Raises:
        UserError: no such path, a wrong pin, or the hub cannot be reached.
    """
    patterns = [
        f"{name}/{end}" for name in (*_USED, *_OF_VARIATIONS) for end in ("*.json", "*.safetensors", "*.txt")
    ]
    try:
        return resolve(Path(params.path), [*patterns, _EMPTY_EMBEDS], local_files_only)
    except UserError as error:
        raise UserError(f"model.path: {error}") from error


def model_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the files that dinv reads."""
    variations = _OF_VARIATIONS if (folder / _OF_VARIATIONS[0]).is_dir() else ()
    files = sorted(
        path
        for name in (*_USED, *variations, _EMPTY_EMBEDS)
        for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
        if path.suffix in {".json", ".safetensors", ".txt"}
    )
    return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def load_model(folder: Path, params: ModelParams, device: torch.device) -> LatentDiffusion:
    """Load VAE, UNet, noise schedule and, where present, the text encoder; all frozen.

    Raises:
        UserError: a component is missing, broken, or of a kind that cannot be inverted.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415 - takes seconds

    if params.dtype == "float16" and device.type == "cpu":
        raise UserError("model.dtype = 'float16': needs a GPU; use float32 or bfloat16 on the CPU")
    options = {"torch_dtype": getattr(torch, params.dtype)}
    unet = _network(UNet2DConditionModel, folder / "unet", options)
    vae = _network(AutoencoderKL, folder / "vae", options)
    for module in (unet, vae):
        module.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
    model = LatentDiffusion(vae, unet, read_schedule(folder), _empty_prompt(folder), params)
    model.check()
    return model


def _network(kind: Any, folder: Path, options: dict[str, Any]) -> Any:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json; model.path must be a model in diffusers layout with "
            "vae/, unet/ and scheduler/"
        )
    return _part(partial(load_whole, kind, **options), folder)


def _empty_prompt(folder: Path) -> torch.Tensor | None:
    """Embedding of the empty prompt, float32 [L, D]: stored beside the model, or from its CLIP."""
    stored = folder / _EMPTY_EMBEDS
    if stored.is_file():
        return load_file(stored)["prompt_embeds"].float()
    if not (folder / "text_encoder").is_dir():
        return None
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: PLC0415 - takes seconds

    tokenizer = _part(partial(CLIPTokenizer.from_pretrained, local_files_only=True), folder / "tokenizer")
    encoder = _part(partial(load_whole, CLIPTextModel, dtype=torch.float32), folder / "text_encoder")
    length = tokenizer.model_max_length
    ids = tokenizer("", padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).last_hidden_state[0]


def _part(load: Callable[[Path], Any], folder: Path) -> Any:
    try:
        return load(folder)
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: cannot be loaded ({reason}); fetch it again") from error
