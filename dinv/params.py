"""All of params.yaml, typed, frozen and validated. params.yaml explains each parameter.

An unknown key, a missing key, a wrong type or a value out of range raises UserError before any
work starts.
"""

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.classify.params import TrainParams
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.inversion.params import InvertParams
from dinv.metrics.params import EvaluateParams, MeasureParams
from dinv.section import Section
from dinv.sources.params import DataParams
from dinv.strategies.params import GenerateParams

ARMS = ("real", "reconstruction", "synthetic", "mixed")


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    invert: InvertParams
    generate: GenerateParams
    measure: MeasureParams
    train: TrainParams
    evaluate: EvaluateParams
    execution: ExecutionParams


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate a whole parameter file.

    Raises:
        UserError: names the first wrong parameter, its value and what is allowed.
    """
    return parse_params(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of parameter sections, not validated; raises UserError when it has none."""
    try:
        raw = YAML(typ="safe").load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; run in the folder that holds dvc.yaml") from error
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections {', '.join(Params.model_fields)}; it is empty")
    return raw


def parse_params(raw: dict[str, Any], place: str = "params.yaml") -> Params:
    """Validate the sections of a parameter file given as nested dicts; raises UserError."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        # A misspelt key is also a missing one; naming the misspelling helps more.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(f"{place}: {_one_line(errors[0])}") from error


def _one_line(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "params"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown parameter{_suggestion(error['loc'])}; remove it or correct its name"
    if error["type"] == "missing":
        return f"{where}: missing parameter; add it (the committed params.yaml shows each)"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where} = {error['input']!r}: {message[0].lower() + message[1:]}; correct the value"


def _suggestion(loc: tuple[int | str, ...]) -> str:
    section: Any = Params
    for part in loc[:-1]:
        section = section.model_fields[part].annotation
    close = difflib.get_close_matches(str(loc[-1]), section.model_fields, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
