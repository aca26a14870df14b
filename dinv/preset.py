"""Write presets into params.yaml, in order; what they do not name stays.

    python -m dinv.preset stl10 sd14 resnet18

`presets/*.yaml` hold the paper's data sets, model and classifier. Comments in params.yaml survive;
`git diff params.yaml` shows what changed and `git checkout params.yaml` undoes it.
"""

import argparse
import io
import sys
from collections.abc import Sequence
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
        for section, values in _read(name).items():
            document.setdefault(section, {}).update(values)
    text = io.StringIO()
    yaml.dump(document, text)
    parse_params(YAML(typ="safe").load(text.getvalue()), " + ".join([str(path), *names]))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue())


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")  # ruamel's own is nothing


def _read(name: str) -> dict[str, Any]:
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"{path}: no such preset; there are {known}")
    return read_yaml(path)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="+", help="files of presets/ without .yaml")
    try:
        apply_presets(parser.parse_args().name)
    except UserError as error:
        sys.exit(f"dinv preset: {error}")


if __name__ == "__main__":
    main()
