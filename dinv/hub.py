"""Networks in folders, or on the Hugging Face hub, pinned there by a small YAML file that DVC can watch."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from safetensors import SafetensorError

from dinv.errors import UserError

# Copies of the same weights, which nothing reads.
_NOT_NEEDED = ["*.fp16.safetensors", "*.non_ema.safetensors"]
# What loading a damaged or foreign folder ends in.
DAMAGED = (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError)
_EXAMPLE = "{repo_id: owner/name, revision: the commit's 40 hexadecimal digits}"


class Pin(BaseModel):
    """A repository at one commit. Branches and tags move, so they are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo_id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


def read_pin(path: Path) -> Pin:
    """Read a file that pins a repository.

    Raises:
        UserError: the file is not YAML, or has other keys or values.
    """
    try:
        # "base" leaves every value as it is written: 40 digits may also be a number.
        return Pin.model_validate(YAML(typ="base").load(path.read_text()))
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML; write {_EXAMPLE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f" {part} = {first['input']!r}:" for part in first["loc"])
        if first["type"] == "missing":
            where = f" {first['loc'][0]}:"
        message = first["msg"].removeprefix("String ").lower()
        raise UserError(f"{path}:{where} {message}; write {_EXAMPLE}") from error


def resolve(path: Path, patterns: Sequence[str], local_files_only: bool = False) -> Path:
    """The path itself, or the snapshot that a `.yaml` file pins, fetched into the hub's cache if need be.

    Args:
        path: a folder, a file, or a file that pins a repository.
        patterns: globs of the repository's files that are needed.
        local_files_only: do not fetch: only the cache is looked at.

    Raises:
        UserError: there is no such path, the pin is wrong, or the hub cannot be reached.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such folder or file; a repository of the hub is named in a file: {_EXAMPLE}"
        )
    if path.is_dir() or path.suffix not in (".yaml", ".yml"):
        return path
    return _snapshot(path, read_pin(path), patterns, local_files_only)


def _snapshot(path: Path, pin: Pin, patterns: Sequence[str], local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - seldom needed, and takes long
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(
            snapshot_download(
                pin.repo_id,
                revision=pin.revision,
                allow_patterns=list(patterns),
                ignore_patterns=_NOT_NEEDED,
                local_files_only=local_files_only,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: {pin.repo_id} at {pin.revision} cannot be fetched from the hub ({reason}); check both "
            "values and the network, or give a local folder"
        ) from error


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """The network that diffusers' or transformers' class `kind` has in a folder of safetensors, in eval mode.

    Both fill in random numbers for weights that a file lacks, and warn.

    Raises:
        DAMAGED: it cannot be loaded, or lacks a weight.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        network, found = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    finally:
        logging.disable(before)
    if missing := sorted(map(str, found["missing_keys"])):
        raise ValueError(f"{missing[0]} is missing")
    return network.eval()
