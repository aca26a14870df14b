"""Where the networks of features are, and what identifies them."""

from pathlib import Path

from dinv.errors import UserError
from dinv.files import digest_of, file_digest
from dinv.hub import resolve

_HUB_FILES = ("*.json", "*.safetensors")
_HUB_REMEDY = "give a folder, or a YAML file with repo_id and revision of the Hugging Face hub"
_REMEDIES = {
    "convnet": "restore the folder",
    "inception": "fetch weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases",
}


def locate(name: str, path: str, local_files_only: bool = False) -> Path:
    """The file or folder of a network, fetched if `path` is a YAML file that pins a repository of the hub.

    Raises:
        UserError: there is no such path, or the hub cannot be reached.
    """
    if not Path(path).exists():
        remedy = _REMEDIES.get(name, _HUB_REMEDY)
        raise UserError(f"measure.features: {name} at {path!r}: no such path; {remedy}")
    return resolve(Path(path), _HUB_FILES, local_files_only)


def location_digest(location: Path) -> str:
    """SHA-256 over the names and bytes of a network's files."""
    if location.is_file():
        return file_digest(location)
    used = [f for f in sorted(location.rglob("*.*")) if f.suffix in {".json", ".safetensors"}]
    return digest_of({f.relative_to(location).as_posix(): file_digest(f) for f in used})
