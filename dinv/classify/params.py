"""The section `train` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dinv.section import Beta, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Seed

# Channels of the first block of architectures whose later blocks are not ours to change.
FIXED_WIDTHS = {"resnet18": 64, "vgg16": 64, "mobilenetv2": 32, "shufflenetv2": 24, "efficientnet_b0": 32}


class TrainParams(Section):
    """How every arm's classifier is trained; the same for all arms."""

    architecture: Literal["convnet3", "resnet18", "vgg16", "mobilenetv2", "shufflenetv2", "efficientnet_b0"]
    width: PositiveInt
    dtype: Literal["float32", "bfloat16"]
    num_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    real_fraction: Annotated[float, Field(gt=0, lt=1)]
    mixing: Literal["batch", "replace"]
    synthetic_loss_weight: PositiveFloat
    min_confidence: Annotated[float, Field(ge=0, lt=1)]
    pretrained: str | None
    lr: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    momentum: Beta
    weight_decay: NonNegativeFloat
    label_smoothing: Beta
    random_crop: bool
    horizontal_flip: bool
    auto_augment: Literal["cifar10", "imagenet", "svhn"] | None
    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def _parameters_fit_each_other(self) -> "TrainParams":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds must differ from each other: a repeated seed is not a new run")
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps must be below num_steps ({self.num_steps})")
        width = FIXED_WIDTHS.get(self.architecture, self.width)
        if self.width != width:
            name = self.architecture
            raise ValueError(f"width must be {width} for {name}, whose later blocks expect it")
        return self
