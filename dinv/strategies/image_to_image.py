"""Images of a class edited towards the same class: Real Guidance with a prompt, DA-Fusion with a token."""

from dinv.strategies.base import Material
from dinv.strategies.edits import EditParams, Edits


class ImageToImage(Edits):
    """SDEdit towards the image's own class.

    With a prompt: Real Guidance (He et al. 2023, arXiv 2210.07574). With the embedding that method
    `class_embeddings` learned for the class: DA-Fusion (Trabucco et al. 2024, arXiv 2302.07944): r = 0.5, or
    drawn from 0.25, 0.5, 0.75 and 1, s = 7.5, ten images of each real one.
    """

    Params = EditParams

    def __init__(self, params: EditParams, material: Material):
        super().__init__(params, material, "image_to_image")
