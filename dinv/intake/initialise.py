"""`dinv init`: look at a user's images, and set params.yaml for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dinv.errors import UserError
from dinv.images.split import keyed_order
from dinv.intake.look import Found, look, squares
from dinv.intake.place import brings_test, find_source, project_path, unread_folders
from dinv.intake.propose import (
    Options,
    changes,
    data_settings,
    fitting,
    mode_of,
    names_other_data,
    nested,
    side_for_classifiers,
)
from dinv.intake.shipped import Shipped, best_of, fidelity, settings_of_other, shipped_models
from dinv.intake.words import (
    describe,
    explain_changes,
    explain_choice,
    explain_other,
    next_steps,
)
from dinv.params import read_yaml
from dinv.preset import merged, write_settings

SAMPLE = 64  # pictures that models are tried on


def initialise(place: Path, options: Options, params: Path = Path("params.yaml")) -> None:
    """Print what is found and what changes, and change the file; raises UserError.

    On a folder that params.yaml is for already, what the user has changed since stays.
    """
    current = read_yaml(params)
    source, root = find_source(place)
    found = look(options.source or source, Path(project_path(root)), current.get("data", {}).get("seed", 0))
    print(describe(found, unread_folders(root), brings_test(found.source, root)))
    print()
    proposal = _proposal(found, current, options)
    wanted = changes(current, fitting(proposal, current), options)
    if wanted.write and not options.dry_run:
        write_settings([nested(wanted.write)], params, str(params))
    print(f"\n{explain_changes(wanted, current, options.dry_run)}\n\n{next_steps(bool(found.broken))}")


def _proposal(found: Found, current: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The section `data` and what goes with the model; prints why."""
    mode = mode_of(found)
    path = options.model or _model_now(found, current, options)
    shipped = [model for model in shipped_models() if path in (None, model.path)]
    if path is not None and not shipped:
        resolution = options.resolution or side_for_classifiers(found)
        settings = _other(path, resolution, current)
        print(explain_other(path, settings["model"]["resolution"]))
        return merged(settings, {"data": data_settings(found, mode, resolution, options)})
    if path is None:
        shipped = [model for model in shipped if model.mode == mode]
    chosen = _choose(shipped, found, mode)
    resolution = options.resolution or chosen.settings["model"]["resolution"]
    return merged(chosen.settings, {"data": data_settings(found, chosen.mode, resolution, options)})


def _model_now(found: Found, current: Mapping[str, Any], options: Options) -> str | None:
    """The model of params.yaml, where that is for these images already: it stays."""
    data = {"data": {"source": found.source, "root": found.root}}
    if options.reset or names_other_data(current, data):
        return None
    return str(current["model"]["path"])


def _other(path: str, resolution: int, current: Mapping[str, Any]) -> dict[str, Any]:
    place = Path(path)
    if not (place / "unet").is_dir() and place.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"--model {path}: not a model in diffusers layout; give its folder, or a file that pins one on "
            "the hub, such as models/stable-diffusion-v1-4.yaml"
        )
    if not place.exists():
        raise UserError(f"--model {path}: no such folder or file; correct the path")
    now = current.get("train", {}).get("cnn", {}).get("architecture", "")
    return settings_of_other(path, resolution, now)


def _choose(shipped: list[Shipped], found: Found, mode: str) -> Shipped:
    """The one whose autoencoder suits the images; prints why."""
    if not shipped:
        raise UserError(f"no shipped model is for images of mode {mode}; name another with --model")
    levels = {}
    for model in tqdm(shipped, "try models", unit="model", leave=False):
        levels[model.path] = fidelity(model, _sample(found, model))
    chosen = best_of(shipped, levels)
    print(explain_choice(levels, chosen, found.root))
    return chosen


def _sample(found: Found, model: Shipped) -> NDArray[np.uint8]:
    """Up to 64 training images at the model's side, uint8 [n, H, H, C]."""
    train = found.splits["train"]
    order = keyed_order([train.raw.ids[row] for row in train.readable], 0, "model trial")
    rows = [train.readable[i] for i in order[:SAMPLE]]
    return squares(train, rows, model.settings["model"]["resolution"], model.mode)
