"""Folders of files that may lie on the Hugging Face hub, pinned by a small YAML file."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.errors import UserError


def resolve(path: Path, patterns: Sequence[str], local_files_only: bool = False) -> Path:
    """The path itself, or the snapshot of the repository that a `.yaml` file pins.

    Such a file reads `{repo_id: NAME, revision: COMMIT}`; files that match the patterns are fetched.

    Raises:
        UserError: there is no such path, the file is not a pin, or the hub cannot be reached.
    """
    if not path.exists():
        raise UserError(f"{path}: no such path")
    if path.suffix != ".yaml":
        return path
    repository, revision = _read_pin(path)
    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), local_files_only=local_files_only
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: {repository} cannot be fetched from the hub ({reason})") from error
    return Path(found)


def _read_pin(path: Path) -> tuple[str, str]:
    try:
        pin = YAML(typ="safe").load(path.read_text())
        repository, revision = str(pin["repo_id"]), str(pin["revision"])
    except (YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path}: write repo_id and revision, a commit of the hub") from error
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise UserError(f"{path}: revision = {revision!r} is not a commit of 40 hexadecimal digits")
    return repository, revision
