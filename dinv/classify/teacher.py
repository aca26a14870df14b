"""Who says what generated images show: logistic regression on frozen features of the real training images,
classifiers of the learner's own, or both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.base import Classifier, LabelledImages, LearnerParams, TrainingSet
from dinv.classify.confidence import class_confidence
from dinv.classify.feature_params import TeacherParams
from dinv.classify.store import StoredClassifier

_PLAIN = {
    "learner": "probe",
    "classifier": "logistic",
    "kernel": "linear",
    "real_fraction": 0.5,
    "synthetic_loss_weight": 1.0,
    "min_confidence": 0.0,
    "seeds": [0],
}


def teacher_key(params: TeacherParams | None) -> list[object]:
    """What decides a teacher besides the images: its network by its bytes, and its C."""
    from dinv.classify.frozen import find_network  # noqa: PLC0415 - loads diffusers

    return [] if params is None else [find_network(params.features).digest, params.C]


def fit_teacher(real: LabelledImages, params: TeacherParams, device: torch.device) -> StoredClassifier:
    """The learner `probe` with the teacher's features and C. No random number is drawn.

    Raises:
        UserError: the network is not there, or the images are of one class.
    """
    from dinv.classify.probe import Probe, ProbeParams  # noqa: PLC0415 - loads diffusers

    probe = ProbeParams.model_validate({**_PLAIN, "features": params.features, "C": params.C})
    fitted = Probe.fit(TrainingSet([real], real), probe, 0, device, lambda n: None)
    return StoredClassifier("probe", fitted, 0, len(real))


@dataclass(frozen=True)
class Jointly:
    """p = s p_teacher + (1 - s) p_own, p_own the mean over the learner's own classifiers."""

    teacher: Classifier
    own: Sequence[Classifier]
    share: float

    def predict_proba(self, images: torch.Tensor, device: torch.device) -> NDArray[np.float32]:
        """float32 [N, M], rows sum to 1."""
        own = class_confidence(self.own, images, device)
        return self.share * self.teacher.predict_proba(images, device) + (1 - self.share) * own


def find_teachers(
    params: LearnerParams,
    real: LabelledImages,
    train_own: Callable[[], Sequence[Classifier]],
    device: torch.device,
) -> Sequence[Classifier]:
    """Whom the parameters say to ask; `train_own` is called only if these are the learner's own classifiers
    of real images, or they have a part in it.
    """
    if params.teacher is None:
        return train_own()
    teacher = fit_teacher(real, params.teacher, device)
    share = params.teacher_share
    return [teacher] if share == 1 else [Jointly(teacher, train_own(), share)]
