"""GeNIe-Ada (Koohpayegani et al. 2023, arXiv 2312.02548): GeNIe with a strength chosen for each image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from dinv.diffusion.latent_diffusion import LatentDiffusion
from dinv.errors import UserError
from dinv.features.extractors import Extractor
from dinv.features.params import WatchedNetwork
from dinv.features.watched import FrozenNetwork, unit
from dinv.strategies.base import Draw, Facts, Inputs, Material, OpenModel, Renderer
from dinv.strategies.confusion import OtherClasses
from dinv.strategies.cost import unet_passes
from dinv.strategies.edits import (
    EditParams,
    Strength,
    Variants,
    require_several_classes,
)
from dinv.strategies.from_image import FromImage, first_step


class GenieAdaParams(EditParams):
    """`strengths` are all tried, in rising order; `features` is the frozen encoder f that judges them.

    `targets`: all other classes, or first those that a probe on `features` takes the image for.
    """

    targets: Literal["all", "confused"] = "all"

    strengths: Annotated[list[Strength], Field(min_length=2)]
    features: WatchedNetwork


def after_largest_jump(edits: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Which strength to take for each image, int64 [B]: the one after the largest jump towards the target.

    d_r = <f(x^r), v> / |v| with v = mean f(target's images) - f(x), and r* = argmax_r (d_r - d_{r-1}).

    Args:
        edits: features of the edits with R rising strengths, float32 [B, R, D].
        source: features of the images, [B, D].
        target: means of the target classes' features, [B, D].
    """
    v = unit(target - source)
    return torch.einsum("brd,bd->br", edits, v).diff(dim=1).argmax(1) + 1


@dataclass(frozen=True)
class Adaptive(FromImage):
    """Every strength, and of them one per image.

    Inputs: as FromImage without `first_step`; `source_features` and `target_features` float32 [B, D].
    """

    strengths: tuple[float, ...]
    network: FrozenNetwork

    def open(self, open_model: OpenModel) -> Callable[[Inputs], torch.Tensor]:
        """Load the model and the encoder."""
        model = open_model()
        features = self.network.extractor(model.device)
        return lambda inputs: self.choose(model, features, inputs)

    def choose(self, model: LatentDiffusion, features: Extractor, inputs: Inputs) -> torch.Tensor:
        """The chosen edits, uint8 [B, H, W, C]."""
        n = len(inputs["images"])
        firsts = [first_step(r, self.num_inference_steps) for r in self.strengths]
        tried = [self.render(model, {**inputs, "first_step": torch.full((n,), first)}) for first in firsts]
        found = torch.stack([features(images.numpy()) for images in tried], dim=1)
        best = after_largest_jump(found, inputs["source_features"], inputs["target_features"])
        return torch.stack(tried, dim=1)[torch.arange(n), best]


class GenieAda(Variants):
    """The paper: strengths 0.5 to 0.9 in steps of 0.1, features of the classifier's own backbone."""

    Params = GenieAdaParams

    def __init__(self, params: GenieAdaParams, material: Material):
        require_several_classes(material.real.class_names, "genie_ada")
        super().__init__(params, material, "genie_ada")
        self.params: GenieAdaParams = params
        self._strengths = tuple(sorted(set(params.strengths)))
        self._network = FrozenNetwork.of(params.features)
        self._features = torch.from_numpy(self._network.features_of(material.real))
        probed = self._features.numpy() if params.targets == "confused" else None
        self._others = OtherClasses(self.real, params.seed, probed)
        self._means = torch.stack([self._mean(k) for k in range(len(self.real.class_names))])

    def _mean(self, label: int) -> torch.Tensor:
        rows = np.flatnonzero(self.real.labels == label)
        if not len(rows):
            raise UserError(
                f"genie_ada: class {self.real.class_names[label]!r} has no training image to move to; add one"
            )
        # In double precision and the order of ids: no other order of the image set changes the sum.
        ordered = sorted(rows.tolist(), key=lambda row: self.real.ids[row])
        return self._features[ordered].double().mean(0).float()

    def draw(self, row: int, variant: int) -> Draw:
        """One image, towards another class."""
        p, source = self.params, self.real.ids[row]
        target = self._others.target(row, variant)
        n = p.num_inference_steps
        passes = [unet_passes(p.scheduler, n - first_step(r, n), p.guidance_scale) for r in self._strengths]
        facts: Facts = {
            **self.facts(variant, target, n),
            "strengths": " ".join(f"{r:g}" for r in self._strengths),
            "target": target,
            "unet_passes": sum(passes),
        }
        return Draw(f"{source}#{variant}", target, source, facts)

    def inputs(self, draws: Sequence[Draw]) -> Inputs:
        """Images, conditions, noise seeds, features of sources and targets."""
        targets = [int(d.facts["target"]) for d in draws]
        inputs = self.shared_inputs(draws, targets)
        inputs["source_features"] = self._features[[self._row_of[str(d.source_id)] for d in draws]]
        inputs["target_features"] = self._means[targets]
        return inputs

    def renderer(self) -> Renderer:
        """Tries every strength."""
        p, chosen = self.params, (self._strengths, self._network)
        return self.adapted(Adaptive(p.guidance_scale, p.scheduler, p.num_inference_steps, *chosen))

    def previews(self) -> "list[tuple[str, GenieAda]]":
        """The strategy as it is."""
        return [("chosen strength", self)]
