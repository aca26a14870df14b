"""What params.yaml says of frozen features that a learner or a teacher classifies."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.features.params import WatchedNetwork
from dinv.section import PositiveFloat, Section


class UNetFeatures(Section):
    """The generator's own: one noised pass with the empty prompt, read at a block of the UNet.

    `path`, `dtype` and `resolution` are as in section `model`.
    """

    network: Literal["unet"]
    path: str
    dtype: Literal["float32", "float16", "bfloat16"]
    resolution: Annotated[int, Field(ge=8)]
    block: Annotated[str, Field(pattern=r"^(mid|(down|up)_\d+)$")]
    timestep: Annotated[int, Field(ge=0)]
    pooling: Literal["none", "mean"]


FrozenFeatures = Annotated[WatchedNetwork | UNetFeatures, Field(discriminator="network")]


class TeacherParams(Section):
    """A logistic regression on frozen features of the real training images: which features, and its C."""

    features: FrozenFeatures
    C: PositiveFloat
