"""Low-rank adapters on a UNet's attention projections (LoRA, Hu et al. 2021, arXiv 2106.09685), through peft.

W x becomes W x + alpha / r B A x. The frozen model that others hold is never touched: an adapter sits in a
copy of the UNet's modules that shares all of its weights. Files are those that diffusers' pipelines load.
"""

import copy
import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.errors import UserError
from dinv.rng import generator

FILE = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights looks for
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
PREFIX = "unet."
_METADATA = "lora_adapter_metadata"  # diffusers' own key

Tensors = dict[str, torch.Tensor]


def require_peft(user: str) -> None:
    """Raise UserError where peft is not installed."""
    if find_spec("peft") is None:
        raise UserError(f"{user}: works with an adapter, and peft is not installed; pip install -e '.[lora]'")


def with_new_adapter(model: LatentDiffusion, rank: int, alpha: float, seed: int) -> LatentDiffusion:
    """The model with an adapter that changes nothing yet, float32: A ~ N(0, 1 / r^2), B = 0.

    Its parameters, `adapter_weights`, take gradients; all others are shared with `model` and frozen.
    """
    require_peft("an adapter")
    from peft import LoraConfig  # noqa: PLC0415 - peft is optional

    adapted = _copy(model)
    with torch.random.fork_rng(devices=[]):  # peft draws numbers that are written over below
        adapted.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS)))
    for name, weight in adapter_weights(adapted).items():
        shape, device = weight.shape, weight.device
        draw = torch.randn(shape, generator=generator(seed, "adapter", name)) / rank
        weight.data = torch.zeros(shape, device=device) if ".lora_B." in name else draw.to(device)
        weight.requires_grad_()
    return adapted


def with_adapter(model: LatentDiffusion, path: Path) -> LatentDiffusion:
    """The model with a stored adapter, frozen, in the type that the model computes in.

    Raises:
        UserError: the file is missing, damaged or of another model.
    """
    require_peft(str(path))
    tensors, metadata = _read(path)
    adapted = _copy(model)
    try:
        with torch.random.fork_rng(devices=[]):
            adapted.unet.load_lora_adapter(tensors, prefix=PREFIX[:-1], metadata=metadata)
        found = adapter_weights(adapted)
        if found.keys() != tensors.keys():
            raise ValueError(f"{len(tensors)} tensors, {len(found)} have a place in its UNet")
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: does not fit model.path = {model.params.path!r} ({reason}); run dvc repro, so that it "
            "is learned for it"
        ) from error
    for weight in found.values():
        weight.data = weight.data.to(model.device, model.dtype)
        weight.requires_grad_(False)
    return adapted


def adapter_weights(adapted: LatentDiffusion) -> Tensors:
    """The adapter's parameters by the names that they have in files, in the order of names."""
    named = {_stored_name(n): p for n, p in adapted.unet.named_parameters() if ".lora_" in n}
    return dict(sorted(named.items()))


def save_adapter(weights: Mapping[str, torch.Tensor], rank: int, alpha: float, path: Path) -> None:
    """Write the adapter's weights; equal ones give equal bytes."""
    config = {"r": rank, "lora_alpha": alpha, "target_modules": list(TARGETS)}
    stated = json.dumps({PREFIX + key: value for key, value in config.items()}, sort_keys=True)
    # One entry: several are written in an order that differs from run to run.
    save_file({n: w.detach().cpu().contiguous() for n, w in weights.items()}, path, {_METADATA: stated})


def _read(path: Path) -> tuple[Tensors, Any]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {})[_METADATA])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{path}: missing, damaged or not an adapter ({reason}); run dvc checkout") from error


def _copy(model: LatentDiffusion) -> LatentDiffusion:
    """A model of its own modules: of the UNet's new ones with the same weights, of the rest the same."""
    unet, adapted = model.unet, copy.copy(model)
    shared = {id(x): x for x in (*unet.parameters(), *unet.buffers())}
    adapted.unet = copy.deepcopy(unet, shared)
    return adapted


def _stored_name(name: str) -> str:
    """peft puts the name of the adapter between that of the matrix and its weight; files leave it out."""
    head, _, weight = name.rpartition(".")
    return f"{PREFIX}{head.rpartition('.')[0]}.{weight}"
