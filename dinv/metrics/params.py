"""The section `measure` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.section import PositiveInt, Section, Seed


class MeasureParams(Section):
    """How image sets are compared."""

    features: Annotated[dict[Literal["fashion", "inception", "dinov2", "clip"], str], Field(min_length=1)]
    num_images: Annotated[int, Field(ge=2)]
    num_neighbors: PositiveInt
    seed: Seed


class EvaluateParams(Section):
    """What is reported."""

    confusion_arm: Literal["real", "reconstruction", "synthetic", "mixed"]
