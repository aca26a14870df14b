"""The section `data` of params.yaml."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from dinv.section import PositiveInt, Section, Seed, did_you_mean
from dinv.sources.registry import SOURCES


def _registered(name: str) -> str:
    if name not in SOURCES.places:
        words = {"hint": did_you_mean(name, SOURCES.places), "known": ", ".join(SOURCES)}
        raise PydanticCustomError("unknown_source", "No such source{hint}; known: {known}", words)
    return name


class DataParams(Section):
    """Which labelled images form the task."""

    source: Annotated[str, AfterValidator(_registered)]
    root: str
    resolution: Annotated[int, Field(ge=8)]
    resize: Literal["pad", "center_crop", "squash"]
    mode: Literal["L", "RGB"]
    num_per_class: PositiveInt | None
    num_val_per_class: Annotated[int, Field(ge=0)]
    num_test: PositiveInt | None
    seed: Seed
