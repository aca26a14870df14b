"""`dinv archive-model`: keep the generator where the results are, since models vanish from the hub."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from dinv.diffusion.loading import fetch_model, model_digest
from dinv.errors import UserError
from dinv.hub import resolve
from dinv.params import load_params
from dinv.preset import write_settings

PARAMS = Path("params.yaml")
MODELS = Path("models")
# For people: cards and licences.
NOTES = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
# For dinv, below the folders that it loads.
_FOLDERS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
WEIGHTS = (*(f"{f}/**/*.{end}" for f in _FOLDERS for end in ("json", "safetensors", "txt")), "*.safetensors")


def archive_model(push: bool = False) -> str:
    """Put the model of params.yaml under DVC; returns what was done and what is left to do, a line each.

    A folder in the project stays where it is. A model that is pinned on the hub, or lies elsewhere, is copied
    to models/<its name>, and model.path then names this folder. The model's digest stays the same, so
    `dvc repro` computes nothing again.

    Args:
        push: upload it to the project's DVC remote as well.

    Raises:
        UserError: the model is in git already, is not there, or DVC refuses.
    """
    model = load_params(PARAMS).model
    path = Path(model.path)
    source, target = fetch_model(model), place_of(path)
    if _git_has(target):
        raise UserError(f"model.path = {model.path!r}: {target} is in git, so every clone has it already")
    if target.is_symlink():
        raise UserError(f"{target}: is a link; put the folder itself in its place")
    moves = target != path
    if moves:
        _copy(_with_notes(path, source), target)
    _dvc("add", target.as_posix())
    if moves:
        write_settings([{"model": {"path": target.as_posix()}}], PARAMS, str(PARAMS))
    if push:
        _dvc("push", f"{target}.dvc")
    return _done(target, moves, push)


def _done(target: Path, moved: bool, pushed: bool) -> str:
    changed = [f"{target}.dvc", f"{target.parent}/.gitignore", *([str(PARAMS)] if moved else [])]
    lines = [f"{target} is under DVC" + (", and in the remote" if pushed else "")]
    if moved:
        lines.append(f"model.path = {target} in {PARAMS}: dvc repro reruns stages and computes nothing again")
    lines.append(f"next: git add {' '.join(changed)}")
    return "\n".join(lines + ([] if pushed else [f"then: dvc push {target}.dvc"]))


def place_of(path: Path) -> Path:
    """Where the archived model lies: where it is, or models/<name> if that is no folder of the project."""
    absolute, project = path.resolve(), Path.cwd().resolve()
    if path.is_dir() and absolute.is_relative_to(project):
        return absolute.relative_to(project)
    return MODELS / (path.stem if path.is_file() else path.name)


def _copy(source: Path, target: Path) -> None:
    """Copy what dinv reads of a model, and its card and licence; finished or not there at all.

    Raises:
        UserError: there is another model at the target.
    """
    if target.exists():
        if model_digest(target) != model_digest(source):
            raise UserError(f"{target}: is there and another model than {source}; move it away")
        return
    files = [file for pattern in (*NOTES, *WEIGHTS) for file in source.glob(pattern) if file.is_file()]
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        new = Path(folder) / target.name
        for file in tqdm(files, "copy", unit="file", mininterval=1):
            place = new / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)  # what a link of the hub's cache leads to, not the link
        if model_digest(new) != model_digest(source):
            raise UserError(f"{source}: changed while it was copied; try again")
        new.rename(target)


def _with_notes(path: Path, source: Path) -> Path:
    """The model's folder; of one on the hub also its card and licence are fetched, if that can be done."""
    if path.is_dir():
        return source
    try:
        return resolve(path, NOTES)
    except UserError:
        return source  # the weights are there, which is what vanishes


def _git_has(folder: Path) -> bool:
    """Whether git tracks a file in the folder."""
    command = ["git", "ls-files", "--", folder.as_posix()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"git ls-files: {' '.join(done.stderr.split())}")
    return bool(done.stdout.strip())


def _dvc(*arguments: str) -> None:
    """Raises UserError with what DVC says; with --quiet it would say nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next(
            (line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason"
        )
        raise UserError(f"dvc {' '.join(arguments)}: {said[:200]}")
