"""The section `generate` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.section import Fraction, NonNegativeFloat, PositiveInt, Section, Seed


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
