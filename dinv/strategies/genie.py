"""GeNIe (Koohpayegani et al. 2023, arXiv 2312.02548): an image of one class edited into another."""

from dinv.strategies.base import Material
from dinv.strategies.edits import EditParams, Edits, other_class, require_several_classes


class Genie(Edits):
    """SDEdit of an image of class a with the condition of class b, labelled b: hard negatives.

    The paper: r = 0.8 (few shots), s = 7.5, DPM-Solver++ with 50 steps, "a photo of a {class}". Each image
    goes to other classes in a random order: M - 1 images of each source are GeNIe's "all other classes".
    """

    Params = EditParams

    def __init__(self, params: EditParams, material: Material):
        require_several_classes(material.real.class_names, "genie")
        super().__init__(params, material, "genie")

    def target(self, row: int, variant: int) -> int:
        """Another class."""
        source, own = self.real.ids[row], int(self.real.labels[row])
        return other_class(len(self.real.class_names), own, self.params.seed, source, variant)
