"""The section `model` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.section import Section


class ModelParams(Section):
    """The frozen latent diffusion model."""

    path: str
    dtype: Literal["float32", "float16", "bfloat16"]
    resolution: Annotated[int, Field(ge=8)]
