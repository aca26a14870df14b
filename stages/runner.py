"""What every stage does around its work: parameters, code fingerprint, one-line errors."""

import ctypes
import inspect
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from safetensors import SafetensorError

from dinv.errors import UserError
from dinv.files import digest_of, file_digest
from dinv.params import load_params

# These cannot change a result: they validate, report and resume. No stage depends on them.
NOT_FINGERPRINTED = ("stages/runner.py", "dinv/errors.py", "dinv/params.py", "dinv/execution/")


def run(stage: str, main: Callable[..., None], **arguments: Any) -> None:
    """Call `main` with the sections of params.yaml that its signature names, then exit.

    `code_digest`, if named, is the digest of the stage's declared code: it keys finished parts.
    A UserError becomes one line on stderr and exit status 1. Parameters or code that changed
    while the stage ran are an error too, since DVC would record the result as theirs.
    """
    _die_with_parent()
    try:
        before = _fingerprint(stage, main)
        params = load_params()
        wanted = set(inspect.signature(main).parameters) - set(arguments)
        if "code_digest" in wanted:
            arguments["code_digest"] = before["code"]
        sections = wanted - {"code_digest"}
        main(**{name: getattr(params, name) for name in sections}, **arguments)
        if _fingerprint(stage, main) != before:
            raise UserError(
                f"{stage}: params.yaml or code changed while the stage ran; the result is not "
                "recorded. Run dvc repro again: finished parts of the same work are reused"
            )
    except UserError as error:
        sys.exit(f"dinv {stage}: {error}")
    except torch.OutOfMemoryError:
        sys.exit(
            f"dinv {stage}: out of GPU memory, though micro-batches were halved down to one image; lower "
            "model.resolution or train.batch_size, or set model.dtype to bfloat16; finished parts are kept"
        )
    except (OSError, SafetensorError) as error:  # the latter from writing: readers make it a UserError
        sys.exit(f"dinv {stage}: {error}; check free space and permissions, finished parts are kept")


def declared_code(stage: str) -> list[Path]:
    """The .py files that dvc.yaml declares as the stage's dependencies."""
    pipeline = YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"][stage]
    deps = pipeline.get("do", pipeline)["deps"]
    return [Path(dep) for dep in deps if dep.endswith(".py")]


def _fingerprint(stage: str, main: Callable[..., None]) -> dict[str, str]:
    code = {path.as_posix(): file_digest(path) for path in declared_code(stage)}
    params = load_params().model_dump()
    sections = [name for name in inspect.signature(main).parameters if name in params]
    used = {name: params[name] for name in sections if name != "execution"}
    return {"code": digest_of(code), "params": digest_of(used)}


def _die_with_parent() -> None:
    """On Linux, end with DVC: killed, it would leave this process running as an orphan."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def read_json(path: Path) -> Any:
    """Read an upstream stage's JSON; raises UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or not JSON; run dvc repro first") from error
