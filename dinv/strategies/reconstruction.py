"""Real images through the autoencoder only: what the latent space lets through."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.strategies.base import Draw, Inputs, Material, OpenModel, StrategyParams


def reconstruct(model: LatentDiffusion, images: torch.Tensor) -> torch.Tensor:
    """decode(encode(images).mean): uint8 [B, H, W, C] to the same shape, on the CPU."""
    return model.decode(model.encode(images).mean)


@dataclass(frozen=True)
class ThroughAutoencoder:
    """Inputs `images`: uint8 [B, H, W, C] at the model's resolution."""

    uses_model: ClassVar[bool] = True

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the autoencoder."""
        model = open_model()
        return lambda inputs: reconstruct(model, inputs["images"])


class Reconstruction:
    """One image from each training image ("VAE reconstruction" of the paper's Table 1)."""

    Params = StrategyParams

    def __init__(self, params: StrategyParams, material: Material):
        self.real = material.real
        self._row_of = {image_id: row for row, image_id in enumerate(self.real.ids)}

    def __len__(self) -> int:
        return len(self.real)

    def draws(self, indices: Sequence[int]) -> list[Draw]:
        """One for every training image."""
        ids, labels = self.real.ids, self.real.labels
        return [Draw(f"{ids[i]}#vae", int(labels[i]), ids[i]) for i in indices]

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """The images themselves."""
        rows = [self._row_of[str(draw.source_id)] for draw in draws]
        return {"images": torch.from_numpy(self.real.take(rows).images)}

    def renderer(self) -> ThroughAutoencoder:
        """Encode and decode."""
        return ThroughAutoencoder()

    def previews(self) -> "list[tuple[str, Reconstruction]]":
        """The autoencoder's work."""
        return [("VAE only", self)]
