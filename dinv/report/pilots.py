"""What pilots have found, from metrics/pilot/NAME.json and NAME.png."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinv.errors import UserError
from dinv.report.files import Files
from dinv.report.pictures import Picture, grid
from dinv.report.verdict import signed

FOLDER = "metrics/pilot"


@dataclass(frozen=True)
class Pilot:
    """One pilot; a level is its number of labelled images per class and three texts: without, with, gain."""

    name: str
    sentence: str
    levels: list[tuple[str, str, str, str]]
    next: str
    picture: Picture | None


def pilots(files: Files) -> list[Pilot]:
    """Every pilot; none where there is no such folder."""
    names = files.names(FOLDER)
    return [_pilot(files, name.removesuffix(".json"), names) for name in names if name.endswith(".json")]


def _pilot(files: Files, name: str, names: list[str]) -> Pilot:
    path, picture = f"{FOLDER}/{name}.json", f"{name}.png"
    content = files.read(path)
    try:
        found = json.loads(content)
        levels = [_level(level) for level in found["levels"]]
        sentence, following = str(found["sentence"]), str(found["next"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{files.name}: {path}: not a pilot's result ({error!r}); run the pilot again"
        ) from error
    shown = grid(files, f"{FOLDER}/{picture}", f"Figure of the pilot {name}") if picture in names else None
    return Pilot(name, sentence, levels, following, shown)


def _level(level: Mapping[str, Any]) -> tuple[str, str, str, str]:
    without, with_ = (f"{_number(level[side]['mean'])} {_ends(level[side])}" for side in ("without", "with"))
    gain = level["difference"]
    return str(level["k"]), without, with_, f"{signed(float(gain['mean']), 1)} {_ends(gain)}"


def _ends(interval: Mapping[str, Any]) -> str:
    return f"({_number(interval['low'])} to {_number(interval['high'])})"


def _number(value: Any) -> str:
    return f"{float(value):.1f}".replace("-", "−")
