"""The sections of params.yaml, typed, frozen and validated. params.yaml explains each parameter.

An unknown key, a missing key, a wrong type or a value out of range raises UserError before any
work starts.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dinv.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# Channels of the first block of architectures whose later blocks are not ours to change.
FIXED_WIDTHS = {"resnet18": 64, "vgg16": 64, "mobilenetv2": 32, "shufflenetv2": 24, "efficientnet_b0": 32}

ARMS = ("real", "reconstruction", "synthetic", "mixed")


class Section(BaseModel):
    """Base of every section: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataParams(Section):
    """Which labelled images form the task."""

    source: Literal[
        "fashion_mnist",
        "image_folder",
        "image_csv",
        "cifar10",
        "cifar100",
        "stl10",
        "imagenette",
        "eurosat",
        "pathmnist",
        "dermamnist",
        "bloodmnist",
    ]
    root: str
    resolution: Annotated[int, Field(ge=8)]
    resize: Literal["pad", "center_crop", "squash"]
    mode: Literal["L", "RGB"]
    num_per_class: PositiveInt | None
    num_val_per_class: Annotated[int, Field(ge=0)]
    num_test: PositiveInt | None
    seed: Seed


class ModelParams(Section):
    """The frozen latent diffusion model."""

    path: str
    revision: str | None
    dtype: Literal["float32", "float16", "bfloat16"]
    resolution: Annotated[int, Field(ge=8)]

    @model_validator(mode="after")
    def _hub_models_are_pinned(self) -> "ModelParams":
        if self.revision is not None and not all(c in "0123456789abcdef" for c in self.revision):
            raise ValueError("revision must be a commit hash (hexadecimal), not a branch or a tag")
        return self


class InvertParams(Section):
    """How an embedding is learned for every image."""

    num_tokens: PositiveInt
    init: Literal["normal", "empty"]
    init_std: NonNegativeFloat
    num_visits: PositiveInt
    lr: PositiveFloat
    lr_schedule: Literal["constant", "cosine"]
    adam_beta1: Beta
    adam_beta2: Beta
    weight_decay: NonNegativeFloat
    timestep_sampling: Literal["uniform", "stratified"]
    latents: Literal["sample", "mean"]
    storage_dtype: Literal["float32", "float16"]
    seed: Seed


class GenerateParams(Section):
    """How embeddings are perturbed and images generated from them."""

    num_images_per_embedding: PositiveInt
    balance_classes: bool
    noise_std: NonNegativeFloat
    noise_unit: Literal["absolute", "relative"]
    interpolation: Fraction
    interpolation_distribution: Literal["fixed", "uniform"]
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    unconditional: Literal["mean", "empty"]
    unconditional_scope: Literal["dataset", "class"]
    scheduler: Literal["pndm", "ddim", "dpmsolver++"]
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)]
    seed: Seed


class TrainParams(Section):
    """How every arm's classifier is trained; the same for all arms."""

    architecture: Literal["convnet3", "resnet18", "vgg16", "mobilenetv2", "shufflenetv2", "efficientnet_b0"]
    width: PositiveInt
    dtype: Literal["float32", "bfloat16"]
    num_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    real_fraction: Annotated[float, Field(gt=0, lt=1)]
    mixing: Literal["batch", "replace"]
    synthetic_loss_weight: PositiveFloat
    min_confidence: Annotated[float, Field(ge=0, lt=1)]
    pretrained: str | None
    lr: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    momentum: Beta
    weight_decay: NonNegativeFloat
    label_smoothing: Beta
    random_crop: bool
    horizontal_flip: bool
    auto_augment: Literal["cifar10", "imagenet", "svhn"] | None
    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def _parameters_fit_each_other(self) -> "TrainParams":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ from each other: a repeated seed is not a new run")
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps must be below num_steps ({self.num_steps})")
        width = FIXED_WIDTHS.get(self.architecture, self.width)
        if self.width != width:
            name = self.architecture
            raise ValueError(f"width must be {width} for {name}, whose later blocks expect it")
        return self


class MeasureParams(Section):
    """How image sets are compared."""

    features: Annotated[dict[Literal["fashion", "inception", "dinov2", "clip"], str], Field(min_length=1)]
    num_images: Annotated[int, Field(ge=2)]
    num_neighbors: PositiveInt
    seed: Seed


class EvaluateParams(Section):
    """What is reported."""

    confusion_arm: Literal["real", "reconstruction", "synthetic", "mixed"]


class ExecutionParams(Section):
    """Where and how fast: never changes a result, so no stage depends on it."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    micro_batch: PositiveInt
    backend: Literal["local", "ray"]
    num_workers: PositiveInt
    cpus_per_worker: PositiveInt
    gpus_per_worker: NonNegativeFloat
    address: str | None

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> "ExecutionParams":
        if self.backend == "local" and self.num_workers > 1:
            raise ValueError(f"num_workers = {self.num_workers} needs backend: ray; local has one worker")
        if self.backend == "local" and self.address is not None:
            raise ValueError(f"address = {self.address!r} needs backend: ray")
        return self


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
