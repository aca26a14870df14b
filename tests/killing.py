"""Kill -9 a stage at random moments, run it again, compare the bytes.

Works in the current folder, which is a project's. Every try is a fork of this process, so that imports are
paid once. As DVC does, it removes the output before every run.
"""

import contextlib
import hashlib
import importlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from stages.runner import run


def start(stage: str, block: str | None, scratch: Path) -> int:
    """Fork a process that runs the stage in parts of 5 images; return its pid."""
    pid = os.fork()
    if pid == 0:
        os.environ["DINV_SCRATCH"] = str(scratch)
        scratch.mkdir(exist_ok=True)
        module = importlib.import_module(f"stages.{stage}")
        for name, other in sys.modules.items():
            if name.startswith("dinv.") and hasattr(other, "PART_SIZE"):
                other.PART_SIZE = 5
        status = 1
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        with contextlib.suppress(SystemExit):
            run(stage, module.main, **({} if block is None else {"block": block}))
            status = 0
        (scratch / "modules").write_text("\n".join(sys.modules))
        os._exit(status)
    return pid


def finish(stage: str, block: str | None, scratch: Path) -> None:
    _, status = os.waitpid(start(stage, block, scratch), 0)
    assert status == 0, f"{stage} failed"


def import_what_it_imports(stage: str, block: str | None) -> None:
    """So that the forks need not."""
    importlib.import_module(f"stages.{stage}")
    finish(stage, block, Path("warm-up"))
    for name in Path("warm-up/modules").read_text().split():
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".gitignore")
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def kill_and_resume(stage: str, block: str | None, out: Path, kills: int) -> int:
    """Interrupt a stage `kills` times, each time from nothing; return how many tries that took.

    Moments are random, one in each of as many equal spans of the run: few kills meet early and late ones, too.

    Raises:
        AssertionError: the run that resumes gives other bytes, or computes a finished part again.
    """
    import_what_it_imports(stage, block)
    started = time.perf_counter()
    finish(stage, block, Path("whole"))
    longest, expected = time.perf_counter() - started, digest(out)
    moments, interrupted, tries = random.Random(stage), 0, 0
    while interrupted < kills and tries < 5 * kills:
        scratch, tries = Path(f"killed-{tries}"), tries + 1
        shutil.rmtree(out, ignore_errors=True)
        if kill(stage, block, scratch, longest * (interrupted + moments.random()) / kills):
            interrupted += 1
        else:  # it was through already
            longest *= 0.9
        shutil.rmtree(out, ignore_errors=True)
        check_resumed(stage, block, scratch, out, expected)
    assert interrupted == kills, f"{interrupted} of {tries} runs were interrupted"
    return tries


def kill(stage: str, block: str | None, scratch: Path, after: float) -> bool:
    """Run the stage and kill it; whether it was still running."""
    pid = start(stage, block, scratch)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def check_resumed(stage: str, block: str | None, scratch: Path, out: Path, expected: str) -> None:
    """The next run ends with the expected bytes and leaves finished parts alone."""
    before = {p: p.stat().st_mtime_ns for p in scratch.rglob("*.part") if p.with_suffix(".json").exists()}
    finish(stage, block, scratch)
    assert digest(out) == expected, f"{stage}: other bytes after {scratch}"
    assert before == {p: p.stat().st_mtime_ns for p in before}, f"{stage}: computed a finished part again"
