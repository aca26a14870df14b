"""Write presets into params.yaml, in order; what they do not name stays, comments too."""

import copy
import io
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinv.errors import UserError
from dinv.files import atomic_write
from dinv.params import parse_params, read_yaml

PRESETS = Path("presets")


def apply_presets(names: Sequence[str], path: Path = Path("params.yaml")) -> None:
    """Change the parameter file; raises UserError, and changes nothing, if the result is not valid."""
    read_yaml(path)  # without it, presets would not be there either
    write_settings([_read(name) for name in names], path, " + ".join([str(path), *names]))


def write_settings(settings: Sequence[Mapping[str, Any]], path: Path, place: str) -> None:
    """Change the parameter file by sections of settings, in order; comments stay.

    Raises UserError, which names `place`, and changes nothing, if the result is not valid.
    """
    yaml = YAML()
    yaml.width = 200
    yaml.representer.add_representer(type(None), _represent_null)
    read_yaml(path)
    document = yaml.load(path.read_text())
    for values in settings:
        _merge(document, values)
    text = io.StringIO()
    yaml.dump(document, text)
    parse_params(YAML(typ="safe").load(text.getvalue()), place)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue())


def merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections put together, later ones over earlier ones; these stay as they are."""
    found: dict[str, Any] = {}
    for values in settings:
        _merge(found, copy.deepcopy(dict(values)))
    return found


def preset_settings(base: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What presets change of the sections of a parameter file, in order, as `dvc exp run -S` takes it:
    section.block.key -> value, and +section.block -> a whole block where there is none. Raises UserError.
    """
    return dict(differences(base, merged(base, *(_read(name) for name in names))))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """What of `new` is not so in `old`: names as above, and the new values."""
    for key, value in new.items():
        if key not in old:
            yield f"+{above}{key}", value
        elif isinstance(value, Mapping) and isinstance(old[key], Mapping):
            yield from differences(old[key], value, f"{above}{key}.")
        elif value != old[key]:
            yield f"{above}{key}", value


def _merge(into: MutableMapping[str, Any], values: Mapping[str, Any]) -> None:
    """Set values, those of sections and blocks one by one."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), MutableMapping):
            _merge(into[key], value)
        else:
            into[key] = value


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")  # ruamel's own is nothing


def _read(name: str) -> dict[str, Any]:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"{path}: no such preset; there are {known}")
    return read_yaml(path)
