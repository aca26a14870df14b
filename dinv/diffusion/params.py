"""The section `model` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dinv.section import Section


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
