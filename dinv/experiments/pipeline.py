"""The whole pipeline with other parameters, in a copy of the project, as an experiment of DVC."""

import re
import subprocess
import sys

from dinv.errors import UserError
from dinv.experiments.spec import Settings

_PLAIN = re.compile(r"[\w./+ -]*")  # what needs no quotes


def run_pipeline(revision: str, settings: Settings) -> None:
    """One `dvc exp run` in a copy of the project, kept under the name `revision`; only what changed runs."""
    _forget(revision)
    changes = [part for name, value in settings.items() for part in ("-S", _change(name, value))]
    command = ["exp", "run", "--temp", "--name", revision, *changes]
    done = subprocess.run([sys.executable, "-m", "dvc", *command], check=False)
    if done.returncode != 0:
        raise UserError(f"{revision}: dvc exp run failed, see above; run again, finished parts are reused")


def _forget(revision: str) -> None:
    """Free the name of an earlier run of this commit. `--force` does so too, but runs every stage again."""
    head = _git("rev-parse", "HEAD")
    _git("update-ref", "-d", f"refs/exps/{head[:2]}/{head[2:]}/{revision}")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"git {arguments[0]}: {' '.join(done.stderr.split())}; experiments need a commit")
    return done.stdout.strip()


def _change(name: str, value: object) -> str:
    """What `dvc exp run -S` takes; what is taken away has no value."""
    return name if name.startswith("~") else f"{name}={_literal(value)}"


def _literal(value: object) -> str:
    """A value as `dvc exp run -S` reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str) and not _PLAIN.fullmatch(value):  # such as a prompt with a place for {class}
        return "'" + value.replace("'", r"\'") + "'"
    return str(value)
