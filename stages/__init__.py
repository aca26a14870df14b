"""Stages of the pipeline. dvc.yaml calls any `python3`: this finds the one that has dinv's packages.

Runs before all else and on whatever interpreter there is, so it uses the standard library only and nothing
that an old Python cannot read.
"""

import os
import sys

_NEEDED = ("torch", "diffusers", "pydantic", "tqdm")


def _is_ready() -> bool:
    if sys.version_info < (3, 11):  # noqa: UP036 - this may be any python3
        return False
    from importlib.util import find_spec  # noqa: PLC0415

    return all(find_spec(name) for name in _NEEDED)


def _environments() -> list:
    """`.venv` in the project's folder, or around a temporary copy of it."""
    found = []
    for start in (os.environ.get("DVC_ROOT") or os.getcwd(), os.getcwd()):
        folder, below = os.path.abspath(start), None
        while folder != below:
            found.append(os.path.join(folder, ".venv"))
            folder, below = os.path.dirname(folder), folder
    return found


def _find_interpreter() -> None:
    command = getattr(sys, "orig_argv", ["python3"])[1:]
    for environment in _environments():
        python = os.path.join(environment, "bin", "python")
        here = os.path.realpath(environment) == os.path.realpath(sys.prefix)
        if command and not here and os.access(python, os.X_OK):
            os.execv(python, [python] + command)  # noqa: RUF005
    sys.exit(
        "dinv: %s lacks the packages of this project; "  # noqa: UP031
        "call make repro, or activate the environment first: source .venv/bin/activate" % sys.executable
    )


if sys.argv[0] == "-m" and not _is_ready():  # python3 -m stages.NAME, not an import
    _find_interpreter()
