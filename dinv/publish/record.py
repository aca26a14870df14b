"""What dvc.lock says of an output: which stage made it, from which parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinv.errors import UserError

LOCK = Path("dvc.lock")


@dataclass(frozen=True)
class Record:
    """A stage that ran.

    Attributes:
        stage: its name, such as generate@inversion.
        params: parameters that it depends on, as dvc.lock has them: nested, or with dotted names.
        md5: DVC's hash of the output.
    """

    stage: str
    params: Mapping[str, Any]
    md5: str

    def section(self, name: str) -> Mapping[str, Any]:
        """The parameters whose names begin so, shortened by it; empty if there are none.

        ("model" of {"model.path": 1} and of {"model": {"path": 1}} is {"path": 1}.)
        """
        if name in self.params:
            return dict(self.params[name])
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.params.items() if k.startswith(prefix)}


def lock_entries() -> Mapping[str, Any]:
    """The stages of dvc.lock; empty where there is none."""
    if not LOCK.is_file():
        return {}
    return dict(YAML(typ="safe").load(LOCK.read_text()).get("stages", {}))


def record_of(output: Path) -> Record | None:
    """The record of an output; None if no stage has it.

    Raises:
        UserError: its files are not those that the stage wrote.
    """
    for name, entry in lock_entries().items():
        for out in entry.get("outs", []):
            if out["path"] == output.as_posix():
                if output.as_posix() in changes(name, "changed outs"):
                    raise UserError(
                        f"{output}: not what dvc.lock records of stage {name}; run dvc repro, or dvc checkout"
                    )
                return Record(name, entry.get("params", {}).get("params.yaml", {}), out["md5"])
    return None


def changes(stage: str, kind: str) -> dict[str, str]:
    """What `dvc status` finds changed of a stage: path -> how. `kind` is "changed outs" or "changed deps"."""
    from dvc.repo import Repo  # noqa: PLC0415 - takes a second

    with Repo() as repo:
        found = repo.status(targets=[stage]).get(stage, [])
    return {
        path: how for entry in found if isinstance(entry, dict) for path, how in entry.get(kind, {}).items()
    }
