"""Parameters for images that were looked at, and what of them would change params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinv.intake.look import Found
from dinv.preset import differences, merged

COLOUR_FROM = 0.05  # share of pictures in colour from which the task is in colour
SIDES = (32, 64, 96, 128)  # of classifiers' images, with models that do not ship
LONG = 1.5  # longer side over shorter: above, cropping would lose a third of a picture
VAL_SHARE, MAX_VAL = 5, 50  # a fifth of the smallest class, at most so many


@dataclass(frozen=True)
class Options:
    """What the user says; None or False: dinv chooses."""

    model: str | None = None
    source: str | None = None
    resolution: int | None = None
    resize: str | None = None
    dry_run: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Changes:
    """Parameters by dotted name: those to write, and those that differ from the proposal and are kept."""

    write: dict[str, Any]
    kept: dict[str, Any]


def mode_of(found: Found) -> str:
    """L or RGB."""
    return "RGB" if found.share_in_colour >= COLOUR_FROM else "L"


def data_settings(found: Found, mode: str, resolution: int, options: Options) -> dict[str, Any]:
    """The section `data`, but for its seed."""
    return {
        "source": found.source,
        "root": found.root,
        "resolution": resolution,
        "resize": options.resize or _resize(found),
        "mode": mode,
        "num_per_class": None,
        "num_val_per_class": _num_val(found),
        "num_test": None,
    }


def _resize(found: Found) -> str:
    sides = found.sides
    return "center_crop" if np.median(sides[:, 1] / sides[:, 0]) <= LONG else "squash"


def _num_val(found: Found) -> int:
    """0 where the source has its own; else a share of what the smallest class has for training."""
    if "val" in found.splits:
        return 0
    smallest = min(found.counts("train"))
    return min(smallest // VAL_SHARE, MAX_VAL)


def side_for_classifiers(found: Found) -> int:
    """The largest of 32, 64, 96 and 128 pixels that the median picture has."""
    median = np.median(found.sides[:, 0])
    return max([side for side in SIDES if side <= median], default=SIDES[0])


def fitting(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Without blocks and parameters that params.yaml does not have: nothing would use them."""
    return {
        name: fitting(value, current[name]) if isinstance(value, Mapping) else value
        for name, value in wanted.items()
        if name in current and isinstance(value, Mapping) <= isinstance(current[name], Mapping)
    }


def changes(current: Mapping[str, Any], proposal: Mapping[str, Any], options: Options) -> Changes:
    """What to write. On a folder that params.yaml names already, what the user has set is kept.

    `--resolution` and `--resize` are written anyway, and another model brings its own settings with it.
    """
    found = dict(differences(current, merged(current, proposal)))
    if options.reset or names_other_data(current, proposal):
        return Changes(found, {})
    asked = {f"data.{name}" for name in ("resolution", "resize") if getattr(options, name) is not None}
    other_model = "model.path" in found
    if other_model:
        asked.add("data.resolution")
    write = {
        name: value
        for name, value in found.items()
        if name in asked or (other_model and not name.startswith("data."))
    }
    return Changes(write, {name: value for name, value in found.items() if name not in write})


def names_other_data(current: Mapping[str, Any], proposal: Mapping[str, Any]) -> bool:
    """Whether params.yaml is for another source or folder."""
    now = current.get("data", {})
    return any(now.get(key) != proposal["data"][key] for key in ("source", "root"))


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    found: Any = values
    for part in name.split("."):
        found = found[part]
    return found


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names -> sections."""
    found: dict[str, Any] = {}
    for name, value in changes.items():
        *above, key = name.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[key] = value
    return found
