"""All of params.yaml, put together and validated. params.yaml explains each parameter.

An unknown key, a missing key, a wrong type or a value out of range raises UserError before any
work starts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.classify.arms import REAL, Arm
from dinv.classify.base import LearnerParams
from dinv.classify.registry import LEARNERS
from dinv.diffusion.params import ModelParams
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.params import is_watched
from dinv.inversion.base import MethodParams
from dinv.inversion.registry import METHODS
from dinv.metrics.params import MeasureParams
from dinv.section import Registry, Section, did_you_mean
from dinv.sources.params import DataParams
from dinv.strategies.base import StrategyParams
from dinv.strategies.registry import STRATEGIES

T = TypeVar("T", bound=Section)
# Names of folders and of DVC's stages.
BlockName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
LEARNED, GENERATED = "data/learned/", "data/generated/"


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    invert: dict[BlockName, SerializeAsAny[MethodParams]]
    generate: dict[BlockName, SerializeAsAny[StrategyParams]]
    train: dict[BlockName, SerializeAsAny[LearnerParams]]
    arms: dict[BlockName, Arm]
    measure: MeasureParams
    execution: ExecutionParams


# Sections of named blocks: the key that says which implementation a block is for, and the implementations.
BLOCKS: dict[str, tuple[str, Registry]] = {
    "invert": ("method", METHODS),
    "generate": ("strategy", STRATEGIES),
    "train": ("learner", LEARNERS),
}


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
        blocks = {name: _blocks(name, raw[name]) for name in BLOCKS if isinstance(raw.get(name), dict)}
        params = _validated(Params, {**raw, **blocks}, "")
        _require_blocks_that_fit(params)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return params


def _blocks(section: str, raw: dict[str, Any]) -> dict[str, Section]:
    """Every block of a section, validated by the implementation that it names."""
    key, registry = BLOCKS[section]
    found = {}
    for name, block in raw.items():
        where = f"{section}.{name}"
        if not isinstance(block, dict) or not isinstance(block.get(key), str):
            raise UserError(f"{where}: write {key}: and one of {', '.join(registry)}, then its parameters")
        try:
            implementation = registry[block[key]]
        except UserError as error:
            raise UserError(f"{where}.{key} = {block[key]!r}: {error}") from error
        found[name] = _validated(implementation.Params, block, f"{where}.")
    return found


def _validated(section: type[T], raw: dict[str, Any], prefix: str) -> T:
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        # A misspelt key is also a missing one; naming the misspelling helps more.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(_one_line(errors[0], section, prefix)) from error


def _one_line(error: ErrorDetails, section: type[Section], prefix: str) -> str:
    where = prefix + ".".join(str(part) for part in error["loc"]) or "params"
    if error["type"] == "extra_forbidden":
        known = _known_keys(section, error["loc"][:-1])
        help_ = did_you_mean(str(error["loc"][-1]), known)
        return f"{where}: unknown parameter{help_}; remove it or correct its name"
    if error["type"] == "missing":
        return f"{where}: missing parameter; add it (the committed params.yaml shows each)"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}".replace(".: ", ": ")
    return f"{where} = {error['input']!r}: {message[0].lower() + message[1:]}; correct the value"


def _known_keys(section: type[Section], loc: tuple[int | str, ...]) -> Mapping[str, Any]:
    """The parameters of the section, or of a section inside it, at a place."""
    found: Any = section
    for part in loc:
        if isinstance(found, type) and issubclass(found, Section):
            found = found.model_fields[str(part)].annotation
        else:
            found = get_args(found)[-1]  # of a dict: the type of its values
    return found.model_fields if isinstance(found, type) and issubclass(found, Section) else {}


def _require_blocks_that_fit(params: Params) -> None:
    """Every name that is used is there, and every block is used: what has no effect is not written down."""
    for name, arm in params.arms.items():
        known = {REAL: None, **{f"{GENERATED}{block}": None for block in params.generate}}
        _require_known(f"arms.{name}.images", arm.images, known)
        _require_known(f"arms.{name}.learner", arm.learner, params.train)
        if arm.real and arm.only_real:
            raise UserError(f"arms.{name}.real = True: images are the real ones already; set it to false")
        if params.train[arm.learner].needs_real_labels and not (arm.real or arm.only_real):
            raise UserError(
                f"arms.{name}.real = False: train.{arm.learner} takes generated images without labels; set "
                "it to true, or unlabelled_weight to 0"
            )
    for name, block in params.generate.items():
        if block.input.startswith(LEARNED):
            known = {f"{LEARNED}{learned}": None for learned in params.invert}
            _require_known(f"generate.{name}.input", block.input, known)
            learned = params.invert[block.input.removeprefix(LEARNED)]
            _require_adapter_used(f"generate.{name}", block, learned)
    used = {arm.images for arm in params.arms.values()}
    _require_used("generate", [b for b in params.generate if f"{GENERATED}{b}" not in used], "arm")
    inputs = {block.input for block in params.generate.values()}
    _require_used("invert", [b for b in params.invert if f"{LEARNED}{b}" not in inputs], "block of generate")
    for name, learner in params.train.items():
        for path in learner.generators:
            _require_seen(f"train.{name}", path, params.model.path)
    learners = {arm.learner for arm in params.arms.values()}
    _require_used("train", [b for b in params.train if b not in learners], "arm")


def _require_known(where: str, value: str, known: Mapping[str, Any]) -> None:
    if value not in known:
        raise UserError(
            f"{where} = {value!r}: no such{did_you_mean(value, known)}; there are {', '.join(known)}"
        )


def _require_seen(where: str, path: str, model_path: str) -> None:
    """Stage train depends on data/model.json, the identity of the model's files, and on some folders."""
    if path != model_path and not is_watched(path):
        raise UserError(
            f"{where}: {path!r}: DVC would not see when it changes; use model.path = {model_path!r}, or "
            "put the model into models/pretrained"
        )


def _require_adapter_used(where: str, block: StrategyParams, learned: MethodParams) -> None:
    """Embeddings that were learned with an adapter of the model say little without it."""
    if getattr(learned, "has_adapter", False) and not getattr(block, "takes_adapter", False):
        raise UserError(
            f"{where}.input = {block.input!r}: strategy {block.strategy} samples without the adapter that "
            f"method {learned.method} learned; learn with class_embeddings, or use image_to_image"
        )


def _require_used(section: str, unused: list[str], user: str) -> None:
    if unused:
        raise UserError(f"{section}.{unused[0]}: no {user} uses it; remove the block, or use it")
