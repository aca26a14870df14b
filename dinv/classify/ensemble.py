"""The learner `ensemble`: several learners on the same images, whose class probabilities are averaged."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny

from dinv.classify.base import NOT_OF_TRAINING, Advance, Fitted, LearnerParams, Predict, TrainingSet
from dinv.classify.registry import LEARNERS
from dinv.errors import UserError
from dinv.execution.code import code_digest

OF_ALL = NOT_OF_TRAINING - {"learner"}


def _member(block: Any) -> Any:
    """The parameters of the learner that a block names; seeds, filters and teachers are the ensemble's."""
    if not isinstance(block, dict):
        return block
    common = sorted(OF_ALL.intersection(block))
    if common:
        raise ValueError(f"{common[0]} is not a member's; write it beside members, where it is for all")
    name = block.get("learner")
    if name == "ensemble" or not isinstance(name, str):
        raise ValueError(f"learner = {name!r}: each member names a learner other than ensemble")
    try:
        return LEARNERS[name].Params.model_validate({"seeds": [0], "min_confidence": 0.0, **block})
    except UserError as error:
        raise ValueError(f"learner = {name!r}: {error}") from error


class EnsembleParams(LearnerParams):
    """Blocks like those of `train`, without seeds, filters and teachers."""

    members: Annotated[
        list[Annotated[SerializeAsAny[LearnerParams], BeforeValidator(_member)]], Field(min_length=2)
    ]
    reads_class_names: ClassVar[bool] = True  # a member may

    @property
    def needs_real_labels(self) -> bool:
        """Whether any member does."""
        return any(member.needs_real_labels for member in self.members)

    @property
    def generators(self) -> tuple[str, ...]:
        """Those of the teacher and of all members."""
        return (*super().generators, *(path for member in self.members for path in member.generators))


class Ensemble:
    """The learner: p(y | x) is the mean over members."""

    Params = EnsembleParams

    @staticmethod
    def settings(params: EnsembleParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """Those of every member, and its code, which its name alone does not decide."""
        return {
            "members": [
                [m.learner, code_digest(LEARNERS.module(m.learner)), learner.settings(m, mixes, device)]
                for m, learner in _members(params)
            ]
        }

    @staticmethod
    def num_units(params: EnsembleParams) -> int:
        """Of all members."""
        return sum(learner.num_units(member) for member, learner in _members(params))

    @staticmethod
    def fit(
        data: TrainingSet, params: EnsembleParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Train one member after the other, each as it would be alone; the curve is the first one's."""
        fitted: list[Fitted] = [
            learner.fit(data, member, seed, device, advance) for member, learner in _members(params)
        ]
        tensors = {f"{i}.{name}": t for i, f in enumerate(fitted) for name, t in f.tensors.items()}
        members = [[m.learner, f.build] for m, f in zip(params.members, fitted, strict=True)]
        return Fitted(tensors, {"members": members}, fitted[0].curve)

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """The mean of the members' class probabilities."""
        predicts: list[Predict] = [
            LEARNERS[name].load(_own(tensors, i), its_build, device)
            for i, (name, its_build) in enumerate(build["members"])
        ]

        def predict(images: torch.Tensor) -> torch.Tensor:
            return torch.stack([p(images).float() for p in predicts]).mean(0)

        return predict


def _members(params: EnsembleParams) -> Sequence[tuple[LearnerParams, Any]]:
    return [(member, LEARNERS[member.learner]) for member in params.members]


def _own(tensors: dict[str, torch.Tensor], member: int) -> dict[str, torch.Tensor]:
    """Of one member, by their own names."""
    start = f"{member}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
