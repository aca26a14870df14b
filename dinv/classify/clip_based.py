"""What learners on a frozen CLIP share: its parameters, features of length 1, the names of classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field

from dinv.classify.base import NOT_OF_TRAINING, LearnerParams, Predict, TrainingSet
from dinv.classify.probe import features_of
from dinv.diffusion.text import prompt_for
from dinv.errors import UserError
from dinv.features.cache import Extraction
from dinv.features.clip_text import CLIP_FILES, ClipText, clip_digest
from dinv.features.extractors import Extractor
from dinv.features.params import WatchedPath
from dinv.files import digest_of
from dinv.hub import resolve
from dinv.section import Template, did_you_mean

Templates = Annotated[list[Template], Field(min_length=1)]


class ClipParams(LearnerParams):
    """Where the CLIP is, and other names for classes: by those of the data set, null: these themselves."""

    reads_class_names: ClassVar[bool] = True

    path: WatchedPath
    class_names: dict[str, str] | None


@dataclass(frozen=True)
class ClipNetwork:
    """A CLIP found on this machine, as dinv.features.cache wants its networks."""

    location: Path
    network: str = "clip"

    @classmethod
    def of(cls, path: str) -> "ClipNetwork":
        """Find it, on the hub if need be; raises UserError when it is not there."""
        if not Path(path).exists():
            raise UserError(f"path = {path!r}: no such CLIP; put its folder, or a file that pins it, there")
        return cls(resolve(Path(path), CLIP_FILES).absolute())

    @cached_property
    def images(self) -> Extraction:
        """Its image encoder, as a feature network."""
        return Extraction(self.network, self.location)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of both encoders, the tokenizer and the code that runs the image encoder."""
        return digest_of([self.images.digest, clip_digest(self.location)])

    def open(self, device: torch.device) -> Extractor:
        """Load the image encoder."""
        return self.images.open(device)


def settings_of(params: ClipParams, without: set[str]) -> dict[str, Any]:
    """All parameters that training reads but some, and CLIP by its bytes."""
    own = params.model_dump(exclude={*NOT_OF_TRAINING, "path", *without})
    return {**own, "clip": ClipNetwork.of(params.path).digest}


def image_features(images: torch.Tensor, network: ClipNetwork, device: torch.device) -> torch.Tensor:
    """float32 [N, D] of length 1, on the CPU, of uint8 [N, C, H, W]; known ones are not computed again."""
    return F.normalize(features_of(images, network.images, device).float(), dim=1)


def names_for(data: TrainingSet, params: ClipParams) -> list[str]:
    """What each class is called in texts; raises UserError for a name of no class."""
    others: Mapping[str, str] = params.class_names or {}
    known = dict.fromkeys(data.class_names)
    for name in others:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"class_names: {name!r} is no class{hint}; there are {', '.join(known)}")
    return [others.get(name, name) for name in data.class_names]


def text_weights(text: ClipText, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """A classifier of image features, float32 [M, D]: for each class the mean of its prompts' features, again
    of length 1 (CLIP's ensemble, section 3.1.4).
    """
    of_each = [text.features([prompt_for(template, name) for name in names]) for template in templates]
    return F.normalize(torch.stack(of_each).mean(0), dim=1)


def build_of(params: ClipParams, network: ClipNetwork) -> dict[str, Any]:
    """What is stored of the CLIP with a classifier."""
    return {"path": params.path, "digest": network.digest}


def predictor(
    build: Mapping[str, Any], device: torch.device, logits: Callable[[torch.Tensor], torch.Tensor]
) -> Predict:
    """Softmax of what `logits` makes of image features [B, D].

    CLIP is looked for when the first images come. Raises UserError then if it is another one.
    """
    path, digest = str(build["path"]), str(build["digest"])
    found: list[ClipNetwork] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        if not found:
            network = ClipNetwork.of(path)
            if network.digest != digest:
                raise UserError(f"path = {path!r}: not the CLIP of this classifier; run dvc repro")
            found.append(network)
        return logits(image_features(images, found[0], device)).softmax(1).to(device)

    return predict


def text_predictor(
    tensors: Mapping[str, torch.Tensor], build: Mapping[str, Any], device: torch.device
) -> Predict:
    """softmax of exp(scale) cos(image, class), by stored `scale` and `weights` float32 [M, D]."""
    scale, weights = tensors["scale"], tensors["weights"]
    return predictor(build, device, lambda features: scale * features @ weights.T)
