"""Kill -9 a stage at random moments, run it again, compare the bytes: python killing.py STAGE BLOCK OUT KILLS.

Runs in a project's folder. Every try is a fork of this process, so that imports are paid once. As DVC
does, it removes the output before every run.
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

from stages.runner import run


def start(stage: str, block: str, scratch: Path) -> int:
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
        with contextlib.suppress(SystemExit):
            run(stage, module.main, **({} if block == "-" else {"block": block}))
            status = 0
        (scratch / "modules").write_text("\n".join(sys.modules))
        os._exit(status)
    return pid


def finish(stage: str, block: str, scratch: Path) -> None:
    _, status = os.waitpid(start(stage, block, scratch), 0)
    assert status == 0, f"{stage} failed"


def import_what_it_imports(stage: str, block: str) -> None:
    """So that the forks need not."""
    importlib.import_module(f"stages.{stage}")
    finish(stage, block, Path("warm-up"))
    for name in Path("warm-up/modules").read_text().split():
        with contextlib.suppress(ImportError, AttributeError):
            importlib.import_module(name)


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".gitignore")
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def main(stage: str, block: str, out: Path, kills: int) -> None:
    import_what_it_imports(stage, block)
    started = time.perf_counter()
    finish(stage, block, Path("whole"))
    whole_run, expected = time.perf_counter() - started, digest(out)
    interrupted, moments = 0, random.Random(stage)
    for i in range(kills):
        shutil.rmtree(out, ignore_errors=True)
        scratch = Path(f"killed-{i}")
        pid = start(stage, block, scratch)
        time.sleep(moments.uniform(0, whole_run))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        interrupted += os.WIFSIGNALED(status)
        shutil.rmtree(out, ignore_errors=True)
        before = {p: p.stat().st_mtime_ns for p in scratch.rglob("*.part") if p.with_suffix(".json").exists()}
        finish(stage, block, scratch)
        assert digest(out) == expected, f"{stage}: other bytes after kill {i}"
        after = {p: p.stat().st_mtime_ns for p in before}
        assert before == after, f"{stage}: a finished part was computed again after kill {i}"
    print(f"{interrupted} of {kills} runs were interrupted")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
