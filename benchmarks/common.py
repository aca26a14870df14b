"""What the benchmarks share: paired timings, the machine's description and its matrix-multiply ceiling."""

import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

PACKAGES = ("torch", "diffusers")


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
) -> float:
    """Run both in turn after one warm-up each; print medians per item and the median ratio.

    `sizes` is how many items each call handles. Returns our seconds per item.
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
    return fast


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call, as torch's FlopCounterMode counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def ceiling(device: torch.device, dtype: torch.dtype, runs: int = 5) -> float:
    """Best measured rate of one large square matrix multiplication, FLOP/s."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds(lambda: a @ b, device)
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(runs))
