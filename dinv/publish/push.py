"""Upload a folder to a repository of the Hugging Face hub."""

import re
from pathlib import Path
from typing import Literal

from dinv.errors import UserError

RepoType = Literal["dataset", "model"]


def require_token(name: str) -> str:
    """The user's token, asked for before any work is done.

    Args:
        name: OWNER/NAME of the repository.

    Raises:
        UserError: the name is not that of a repository, or nobody is logged in.
    """
    from huggingface_hub import get_token  # noqa: PLC0415 - seldom needed

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push {name}: write OWNER/NAME, as in my-team/cells")
    token = get_token()
    if token is None:
        raise UserError(
            f"--push {name}: no token of the Hugging Face hub; run hf auth login, or set HF_TOKEN"
        )
    return token


def push_folder(folder: Path, name: str, kind: RepoType, public: bool, token: str) -> str:
    """Upload all files of a folder; returns the repository's address.

    The repository is made if there is none, private unless `public`.

    Raises:
        UserError: the repository is public already and `public` was not asked for, or the hub refuses or
            cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # noqa: PLC0415

    api = HfApi(token=token)
    try:
        address = api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        # An existing repository keeps its visibility, whatever is asked for.
        if not public and not api.repo_info(name, repo_type=kind).private:
            raise UserError(f"--push {name}: exists and is public; add --public, or give another name")
        api.upload_folder(
            folder_path=folder, repo_id=name, repo_type=kind, commit_message=f"Upload {folder.name} by dinv"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # offline mode is an OSError
        reason = " ".join(str(error).split())[:160]
        again = f"hf upload {name} {folder} --repo-type {kind}"
        raise UserError(f"--push {name}: {reason}; {folder} is complete, to try again: {again}") from error
    return str(address)
