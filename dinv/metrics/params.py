"""The section `measure` of params.yaml."""

from typing import Annotated

from pydantic import Field

from dinv.features.params import FeatureNetwork
from dinv.section import PositiveInt, Section, Seed


class MeasureParams(Section):
    """How image sets are compared."""

    features: Annotated[dict[str, FeatureNetwork], Field(min_length=1)]
    num_images: Annotated[int, Field(ge=2)]
    num_neighbors: PositiveInt
    num_draws: PositiveInt
    seed: Seed
