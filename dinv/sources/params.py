"""The section `data` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field

from dinv.section import PositiveInt, Section, Seed


class DataParams(Section):
    """Which labelled images form the task."""

    source: Literal[
        "fashion_mnist",
        "image_folder",
        "image_csv",
        "cifar10",
        "cifar100",
        "stl10",
        "imagenette",
        "eurosat",
        "pathmnist",
        "dermamnist",
        "bloodmnist",
    ]
    root: str
    resolution: Annotated[int, Field(ge=8)]
    resize: Literal["pad", "center_crop", "squash"]
    mode: Literal["L", "RGB"]
    num_per_class: PositiveInt | None
    num_val_per_class: Annotated[int, Field(ge=0)]
    num_test: PositiveInt | None
    seed: Seed
