"""The section `measure` of params.yaml."""

from typing import Annotated

from pydantic import Field

from dinv.features.params import FeatureNetwork
from dinv.section import PositiveInt, Section, Seed


class FeatureNetwork(Section):
    """A network whose features compare image sets, and where its weights are."""

    network: Literal["fashion", "inception", "dinov2", "clip"]
    path: str


class MeasureParams(Section):
    """How image sets are compared."""

    features: Annotated[dict[str, FeatureNetwork], Field(min_length=1)]
    num_images: Annotated[int, Field(ge=2)]
    num_neighbors: PositiveInt
    num_draws: PositiveInt
    seed: Seed
