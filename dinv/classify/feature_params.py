"""What params.yaml says of frozen features that a learner or a teacher classifies."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.features.averaged import Views
from dinv.features.params import WatchedNetwork
from dinv.section import PositiveFloat, Section


class UNetFeatures(Section):
    """The generator's own: one noised pass with the empty prompt, read at a block of the UNet.

    `path`, `dtype` and `resolution` are as in section `model`. Features are means over `views`.
    """

    network: Literal["unet"]
    path: str
    dtype: Literal["float32", "float16", "bfloat16"]
    resolution: Annotated[int, Field(ge=8)]
    block: Annotated[str, Field(pattern=r"^(mid|(down|up)_\d+)$")]
    timestep: Annotated[int, Field(ge=0)]
    pooling: Literal["none", "mean"]
    views: Views = "none"


class ViewedNetwork(WatchedNetwork):
    """A feature network; features are means over `views`."""

    views: Views = "none"


FrozenFeatures = Annotated[ViewedNetwork | UNetFeatures, Field(discriminator="network")]


class TeacherParams(Section):
    """A logistic regression on frozen features of the real training images: which features, and its C."""

    features: FrozenFeatures
    C: PositiveFloat
