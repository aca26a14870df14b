"""The section `invert` of params.yaml."""

from typing import Literal

from dinv.section import Beta, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Seed


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
