"""The seam for classifiers: image sets in, classifier out.

A learner is one file that defines its parameters and the class below, and one line of registry.py. Training a
classifier per seed, resuming, storing, filtering and evaluating are the same for all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from dinv.classify.feature_params import TeacherParams, UNetFeatures
from dinv.section import Beta, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Seed

# Parameters that decide which images and labels a learner is given, not what it makes of them.
NOT_OF_TRAINING = frozenset(
    {
        "learner",
        "seeds",
        "min_confidence",
        "min_confidence_quantile",
        "max_confidence_quantile",
        "soft_labels",
        "teacher_weight",
        "teacher_temperature",
        "teacher",
        "teacher_share",
        "teacher_rounds",
        "choose_real",
        "choose_real_from",
        "choose_real_folds",
        "choose_real_standard_errors",
    }
)
Predict = Callable[[torch.Tensor], torch.Tensor]
Advance = Callable[[int], None]


class LearnerParams(Section):
    """What every block of `train` has: which learner, one classifier per seed, which images are left out, and
    what a teacher says of the others.
    """

    learner: str
    min_confidence: Annotated[float, Field(ge=0, lt=1)]
    min_confidence_quantile: Beta = 0.0
    max_confidence_quantile: Annotated[float, Field(gt=0, le=1)] = 1.0
    soft_labels: Literal["none", "teacher"] = "none"
    teacher_weight: Fraction = 0.5
    teacher_temperature: PositiveFloat = 1.0
    teacher: TeacherParams | None = None
    teacher_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    teacher_rounds: PositiveInt = 1
    seeds: Annotated[list[Seed], Field(min_length=1)]
    # Whether the classes' names decide the result, as where they are read by a text encoder.
    reads_class_names: ClassVar[bool] = False

    @model_validator(mode="after")
    def _some_are_left(self) -> "LearnerParams":
        if self.min_confidence_quantile >= self.max_confidence_quantile:
            high = self.max_confidence_quantile
            raise ValueError(f"min_confidence_quantile must be below max_confidence_quantile ({high})")
        return self

    @model_validator(mode="after")
    def _share_is_of_a_teacher(self) -> "LearnerParams":
        if self.teacher is None and self.teacher_share != 1:
            raise ValueError(
                f"teacher_share = {self.teacher_share:g} needs a teacher; name one, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _rounds_label(self) -> "LearnerParams":
        if self.teacher_rounds > 1 and self.soft_labels == "none":
            raise ValueError(
                f"teacher_rounds = {self.teacher_rounds} label again what a teacher has labelled; "
                "set soft_labels to teacher, or remove it"
            )
        return self

    @property
    def one_round_less(self) -> Self:
        """What the classifiers are trained with that say in the last round what generated images show."""
        return self.model_copy(update={"teacher_rounds": self.teacher_rounds - 1})

    @property
    def asks_a_teacher(self) -> bool:
        """Whether generated images are left out or labelled by what classifiers of real images say."""
        quantiles = self.min_confidence_quantile, self.max_confidence_quantile
        return self.min_confidence > 0 or quantiles != (0, 1) or self.soft_labels == "teacher"

    @property
    def needs_real_labels(self) -> bool:
        """Whether an arm without real images cannot be learned from as the parameters say."""
        return False

    @property
    def generators(self) -> tuple[str, ...]:
        """Paths of the diffusion models whose features are learned from, here by the teacher."""
        features = None if self.teacher is None else self.teacher.features
        return (features.path,) if isinstance(features, UNetFeatures) else ()

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must differ from each other: a repeated seed is not a new run")
        return seeds


class MixedParams(LearnerParams):
    """What learners have that weigh real images against generated ones.

    Attributes:
        real_fraction: share of real images, in [0, 1].
        choose_real: whether this share is chosen among `choose_real_from` by cross-validation.
        choose_real_standard_errors: how much better the best share must be than one with more real images; 1
            is the rule of one standard error (Breiman et al. 1984), 0 takes the best.
    """

    real_fraction: Fraction
    synthetic_loss_weight: PositiveFloat
    choose_real: Literal["none", "cross_validation"] = "none"
    choose_real_from: Annotated[
        list[Fraction], Field(min_length=2, default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    ]
    choose_real_folds: Annotated[int, Field(ge=2)] = 5
    choose_real_standard_errors: NonNegativeFloat = 1.0

    @field_validator("choose_real_from")
    @classmethod
    def _choices_differ(cls, shares: list[float]) -> list[float]:
        if len(set(shares)) != len(shares):
            raise ValueError("the shares to choose from must differ from each other")
        return shares

    @property
    def only_real(self) -> bool:
        """Whether an arm that mixes learns from real images only after all."""
        return self.real_fraction == 1


class Classifier(Protocol):
    """Says what images show."""

    def predict_proba(self, images: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
        """Class probabilities float32 [N, M] of uint8 images [N, C, H, W]."""
        ...


@dataclass(frozen=True)
class LabelledImages:
    """One image set to learn from.

    Attributes:
        images: uint8 [N, C, H, W], in memory or mapped from a file.
        targets: class probabilities float32 [N, M]; one 1 per row where labels are sure.
        origins: int64 [N], row of the real image that each was generated from, -1: none; None: real images.
        partners: the same of the real image that was mixed with that one; None: no image has such a one.
    """

    images: torch.Tensor
    targets: torch.Tensor
    origins: torch.Tensor | None = None
    partners: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Batch:
    """Images of one step.

    Attributes:
        images: uint8 [B + P, C, H, W]; the last P are there as partners only.
        targets: float32 [B + P, M], class probabilities times the image's loss weight.
        partners: int64 [B], row of what MixUp and CutMix mix each image with; None: any, and P = 0.
    """

    images: torch.Tensor
    targets: torch.Tensor
    partners: torch.Tensor | None = None


@dataclass(frozen=True)
class TrainingSet:
    """What an arm learns from.

    Attributes:
        sources: the arm's image sets; where it mixes, the real images first.
        real: the real training images, of which a learner may take pixel statistics.
        class_names: of the M classes.
    """

    sources: Sequence[LabelledImages]
    real: LabelledImages
    class_names: Sequence[str] = ()

    @property
    def mixes(self) -> bool:
        """Whether real and generated images are both learned from."""
        return len(self.sources) > 1

    @property
    def num_classes(self) -> int:
        """M."""
        return self.real.targets.shape[1]


@dataclass(frozen=True)
class Fitted:
    """A classifier to be stored: tensors, what is needed to rebuild it (JSON), its training curve."""

    tensors: dict[str, torch.Tensor]
    build: dict[str, Any]
    curve: list[tuple[int, float]]


class Learner(Protocol):
    """Trains a classifier and brings it back."""

    Params: ClassVar[type[LearnerParams]]

    @staticmethod
    def settings(params: Any, mixes: bool, device: torch.device) -> dict[str, Any]:
        """What of the parameters and the device decides the result, with or without mixing."""
        ...

    @staticmethod
    def num_units(params: Any) -> int:
        """How many images the progress bar counts for one classifier."""
        ...

    @staticmethod
    def fit(data: TrainingSet, params: Any, seed: int, device: torch.device, advance: Advance) -> Fitted:
        """Train; all randomness follows from `seed`. `advance(n)` is called as n images are done."""
        ...

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """A function from uint8 [B, C, H, W] to class probabilities float32 [B, M], both on the device."""
        ...
