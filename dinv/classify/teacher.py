"""A teacher: logistic regression on frozen features of the real training images."""

import torch

from dinv.classify.base import LabelledImages, TrainingSet
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
