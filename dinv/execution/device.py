"""Choice of device."""

import torch

from dinv.errors import UserError


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions; without them bfloat16 is slower than float32."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_device(name: str) -> torch.device:
    """Return the torch device for `auto | cpu | cuda | cuda:N | mps`; raises UserError if absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.mps.is_available()}
    if (device.index or 0) >= int(available[device.type]):
        raise UserError(f"execution.device = {name!r}: this machine has no such device; use auto or cpu")
    return device
