"""GeNIe (Koohpayegani et al. 2023, arXiv 2312.02548): an image of one class edited into another."""

from typing import Literal

from pydantic import model_validator

from dinv.features.params import WatchedNetwork
from dinv.features.watched import FrozenNetwork
from dinv.strategies.base import Material
from dinv.strategies.confusion import OtherClasses
from dinv.strategies.edits import EditParams, Edits, require_several_classes


class GenieParams(EditParams):
    """`targets`: all other classes, or first those that a probe on `features` takes the image for."""

    targets: Literal["all", "confused"] = "all"
    features: WatchedNetwork | None = None

    @model_validator(mode="after")
    def _features_are_those_of_the_probe(self) -> "GenieParams":
        if (self.targets == "confused") != (self.features is not None):
            raise ValueError("features and targets: confused go together: set both, or neither")
        return self


class Genie(Edits):
    """SDEdit of an image of class a with the condition of class b, labelled b: hard negatives.

    The paper: r = 0.8 (few shots), s = 7.5, DPM-Solver++ with 50 steps, "a photo of a {class}". Each image
    goes to other classes in a random order: M - 1 images of each source are GeNIe's "all other classes". With
    `targets: confused` the order is by a probe's out-of-fold probabilities: the most confused class first.
    """

    Params = GenieParams

    def __init__(self, params: GenieParams, material: Material):
        require_several_classes(material.real.class_names, "genie")
        super().__init__(params, material, "genie")
        features = None if params.features is None else FrozenNetwork.of(params.features)
        known = None if features is None else features.features_of(self.real)
        self._others = OtherClasses(self.real, params.seed, known)

    def target(self, row: int, variant: int) -> int:
        """Another class."""
        return self._others.target(row, variant)
