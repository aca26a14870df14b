"""Diff-Mix (Wang et al. 2024, arXiv 2403.19600): an image moved towards another class, with a soft label."""

from dinv.section import PositiveFloat
from dinv.strategies.base import Material
from dinv.strategies.edits import EditParams, Edits, one_hot_mixture, other_class, require_several_classes


class DiffMixParams(EditParams):
    """`gamma` bends how the label follows the strength."""

    gamma: PositiveFloat


class DiffMix(Edits):
    """SDEdit of an image of class a towards class b, labelled (1 - r^gamma) a + r^gamma b.

    The paper: r drawn from 0.5, 0.7 and 0.9, gamma = 0.8 in the published commands, s = 7.5, 25 steps, five
    images of each real one, after fine-tuning with DreamBooth and LoRA: an `input` that `class_lora` learned.
    """

    Params = DiffMixParams

    def __init__(self, params: DiffMixParams, material: Material):
        require_several_classes(material.real.class_names, "diff_mix")
        super().__init__(params, material, "diff_mix")
        self.gamma = params.gamma

    def target(self, row: int, variant: int) -> int:
        """Another class."""
        source, own = self.real.ids[row], int(self.real.labels[row])
        return other_class(len(self.real.class_names), own, self.params.seed, source, variant)

    def label(self, own: int, target: int, strength: float) -> tuple[int, tuple[float, ...]]:
        """The likelier of the two classes, and the probabilities of all."""
        weight = strength**self.gamma
        mixture = one_hot_mixture(len(self.real.class_names), {own: 1 - weight, target: weight})
        return (target if weight >= 0.5 else own), mixture
