"""What the benchmarks share: paired timings, the machine's description and its matrix-multiply ceiling."""

import argparse
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.diffusion.loading import fetch_model, load_model
from dinv.execution.device import resolve_device
from dinv.images.image_set import ImageSet
from dinv.params import Params
from dinv.sources.task import load_task

PACKAGES = ("torch", "diffusers")
SD15_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def make_parser(description: str | None, runs: int) -> argparse.ArgumentParser:
    """Arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--runs", type=int, default=runs, help="how often the paired timing is repeated")
    parser.add_argument("--tiny", action="store_true", help="as little as possible: does it run?")
    return parser


def bundled(params: Params, dtype: str | None, num_images: int) -> tuple[LatentDiffusion, ImageSet]:
    """The model of params.yaml and training images of its task, as the model sees them."""
    changed = params.model.model_copy(update={"dtype": dtype or params.model.dtype})
    model = load_model(fetch_model(changed), changed, resolve_device(params.execution.device))
    train = load_task(params.data).train
    return model, train.take_at([changed.resolution], range(min(num_images, len(train))))[0]


def random_sd15(
    params: Params, dtype: str | None, num_images: int, resolution: int
) -> tuple[LatentDiffusion, ImageSet]:
    """Stable Diffusion 1.5's configuration with random weights, and random pictures: for speed only."""
    device = resolve_device(params.execution.device)
    changed = params.model.model_copy(update={"dtype": dtype or "bfloat16", "resolution": resolution})
    options: dict[str, Any] = {
        "device": device,
        "dtype": getattr(torch, changed.dtype),
        "memory_format": torch.channels_last,
    }
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel(**SD15_UNET), AutoencoderKL(**SD15_VAE)
    modules: list[Any] = [unet, vae]
    for module in modules:
        module.to(**options).eval().requires_grad_(False)
    model = LatentDiffusion(vae, unet, SD15_SCHEDULE, torch.randn(77, 768), changed)
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, resolution, resolution, 3), np.uint8)
    labels = np.arange(num_images, dtype=np.int64) % 10
    return model, ImageSet(pixels, labels, [f"{i}" for i in range(num_images)], [f"{k}" for k in range(10)])


def machine(device: torch.device) -> str:
    """Hardware and versions, one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {versions}"
    return f"{_processor()}, {torch.get_num_threads()} threads; {versions}"


def _processor() -> str:
    """The processor's name and the instructions that decide how fast it multiplies."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text().splitlines()
    found = {key.strip(): value for key, _, value in (line.partition(":") for line in lines)}
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in known if flag in found.get("flags", "").split()]
    return f"{found.get('model name', platform.machine()).strip()} ({', '.join(flags)})"


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, until the device is done."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def compare(
    label: str,
    reference: Callable[[], object],
    ours: Callable[[], object],
    sizes: tuple[int, int],
    runs: int,
    device: torch.device,
) -> tuple[float, float]:
    """Run both in turn after one warm-up each; print medians per item and the median ratio.

    `sizes` is how many items each call handles. Returns the medians, seconds per item.
    """
    seconds(reference, device), seconds(ours, device)
    pairs = [(seconds(reference, device) / sizes[0], seconds(ours, device) / sizes[1]) for _ in range(runs)]
    slow, fast = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"{label}: reference {1000 * slow:.3g} ms, ours {1000 * fast:.3g} ms, ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {runs})",
        flush=True,
    )
    return slow, fast


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call, as torch's FlopCounterMode counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ceiling(device: torch.device, dtype: torch.dtype, size: int | None = None, runs: int = 5) -> float:
    """Best measured rate of one large square matrix multiplication, FLOP/s."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds(lambda: a @ b, device)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(runs))
