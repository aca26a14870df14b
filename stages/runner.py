"""What every stage does around its work: parameters, a guard against changes, one-line errors."""

import argparse
import ctypes
import inspect
import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from dinv.errors import UserError
from dinv.execution.code import changed_since, snapshot
from dinv.execution.expected import expected
from dinv.params import load_params

T = TypeVar("T")


def run(stage: str, main: Callable[..., None], **arguments: Any) -> None:
    """Call `main` with the sections of params.yaml that its signature names and `arguments`, then exit.

    A UserError becomes one line on stderr and exit status 1. So do parameters or code that changed while
    the stage ran, since DVC would record the result as theirs. Of sections of named blocks only what
    belongs to the argument `block` counts.
    """
    _die_with_parent()
    sections = [name for name in inspect.signature(main).parameters if name not in arguments]
    try:
        _require_project()
        params, code = load_params(), snapshot()
        _say_what_is_expected(stage, arguments.get("block"), params.model_dump())
        main(**{name: getattr(params, name) for name in sections}, **arguments)
        before, after = (
            _used(p.model_dump(), sections, stage, arguments.get("block")) for p in (params, load_params())
        )
        changed = [*(["params.yaml"] if before != after else []), *changed_since(code, f"stages.{stage}")]
        if changed:
            raise UserError(
                f"{changed[0]} changed while the stage ran; the result is not recorded. Run dvc repro again: "
                "finished parts of the same work are reused"
            )
    except UserError as error:
        sys.exit(f"dinv {stage}: {error}")
    except torch.OutOfMemoryError:
        sys.exit(
            f"dinv {stage}: out of GPU memory, though micro-batches were halved down to one image; lower "
            "model.resolution or batch_size in train, or set model.dtype to bfloat16; finished parts are kept"
        )
    except (OSError, SafetensorError) as error:  # the latter from writing: readers make it a UserError
        sys.exit(f"dinv {stage}: {error}; {_remedy(error)}")


def block_argument(description: str | None) -> str:
    """The one argument on the command line: a block of params.yaml."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("block", help="name of a block in params.yaml")
    return str(parser.parse_args().block)


def chosen(blocks: Mapping[str, T], block: str, section: str) -> T:
    """One block of a section; raises UserError when there is none of that name."""
    if block not in blocks:
        raise UserError(f"{section}.{block}: no such block in params.yaml; there are {', '.join(blocks)}")
    return blocks[block]


def read_json(path: Path) -> Any:
    """Read an upstream stage's JSON; raises UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing or not JSON; run dvc repro first") from error


def _say_what_is_expected(stage: str, block: str | None, params: dict[str, Any]) -> None:
    """What `dinv estimate` found for it, if it was asked."""
    name = stage if block is None else f"{stage}@{block}"
    line = expected(params, name)
    if line is not None:
        print(f"{name}: {line}, as dinv estimate found; finished parts take no time", flush=True)


def _require_project() -> None:
    for name in ("dvc.yaml", "params.yaml"):
        if not Path(name).is_file():
            raise UserError(f"{Path.cwd()}: has no {name}; go to the folder of the project, then try again")


def _used(params: dict[str, Any], sections: list[str], stage: str, block: str | None) -> dict[str, Any]:
    """What of params.yaml can change the result of a stage, or of its one block."""
    used = {name: params[name] for name in sections if name != "execution"}
    if block is None:
        return used
    section = "arms" if stage == "train" else stage
    if section == "measure":
        return used | {"measure": {**used["measure"], "features": params["measure"]["features"].get(block)}}
    used[section] = params[section].get(block)
    if stage == "train" and used["arms"]:
        used["train"] = params["train"].get(used["arms"]["learner"])
    return used


def _remedy(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "run dvc repro, which makes what is missing"
    return "check free space and permissions, finished parts are kept"


def _die_with_parent() -> None:
    """On Linux, end with DVC: killed, it would leave this process running as an orphan."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
