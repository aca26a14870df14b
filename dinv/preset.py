"""Write presets into params.yaml, in order; what they do not name stays, comments too."""

import io
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from dinv.errors import UserError
from dinv.files import atomic_write
from dinv.params import parse_params, read_yaml

PRESETS = Path("presets")


def apply_presets(names: Sequence[str], path: Path = Path("params.yaml")) -> None:
    """Change the parameter file; raises UserError, and changes nothing, if the result is not valid."""
    yaml = YAML()
    yaml.width = 200
    yaml.representer.add_representer(type(None), _represent_null)
    read_yaml(path)
    document = yaml.load(path.read_text())
    for name in names:
        _merge(document, _read(name))
    text = io.StringIO()
    yaml.dump(document, text)
    parse_params(YAML(typ="safe").load(text.getvalue()), " + ".join([str(path), *names]))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue())


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
