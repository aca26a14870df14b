"""The learner `probe`: logistic regression or a support vector machine on frozen features.

Features are computed once per image and kept: another C, another kernel or fewer images compute none.
"""

from typing import Any, Literal

import torch
from pydantic import model_validator

from dinv.classify.base import NOT_OF_TRAINING, Advance, Fitted, MixedParams, Predict, TrainingSet
from dinv.classify.feature_params import FrozenFeatures
from dinv.classify.frozen import find_network
from dinv.classify.heads import Tensors, fit_logistic, fit_svc, logistic_scores, svc_scores, weighted_rows
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.cache import Network, extract_images
from dinv.section import PositiveFloat, Section

ONLY_MIXED = {"real_fraction", "synthetic_loss_weight"}


class ProbeParams(MixedParams):
    """Which features, and how they are classified. No random number is drawn, so one seed is enough."""

    features: FrozenFeatures
    classifier: Literal["logistic", "svc"]
    kernel: Literal["linear", "rbf"]
    C: PositiveFloat

    @model_validator(mode="after")
    def _kernel_has_an_effect(self) -> "ProbeParams":
        if self.classifier == "logistic" and self.kernel != "linear":
            raise ValueError(f"kernel = {self.kernel!r} needs classifier: svc; logistic is linear")
        return self


class Probe:
    """The learner."""

    Params = ProbeParams

    @staticmethod
    def settings(params: ProbeParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """All but the mixing, where nothing is mixed; the network by its bytes."""
        exclude = {*NOT_OF_TRAINING, "features", *(() if mixes else ONLY_MIXED)}
        return {**params.model_dump(exclude=exclude), "features": find_network(params.features).digest}

    @staticmethod
    def num_units(params: ProbeParams) -> int:
        """One: the features have a bar of their own."""
        return 1

    @staticmethod
    def fit(
        data: TrainingSet, params: ProbeParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Standardise the features of all images, and fit; the same for every seed.

        A class without images gets no probability. Raises UserError if there is one class only.
        """
        data = weighty(data, params.real_fraction)
        network = find_network(params.features)
        images = [features_of(source.images, network, device) for source in data.sources]
        targets = torch.cat([source.targets for source in data.sources])
        rows, labels, weight = weighted_rows(targets, image_weights(data, params))
        if len(labels.unique()) < 2:
            raise UserError("learner probe: the training images are of one class; at least two are needed")
        x, scaling = standardised(torch.cat(images)[rows], weight)
        if params.classifier == "logistic":
            head = fit_logistic(x, labels, weight, params.C)
        else:
            head = fit_svc(x, labels, weight, params.C, params.kernel)
        build = {
            **params.model_dump(include={"classifier", "kernel", "features"}),
            "digest": network.digest,
            "num_classes": data.num_classes,
        }
        advance(1)
        return Fitted({**head, **scaling}, build, [])

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """Softmax of the logits, or of the machine's decision function: votes, so not calibrated.

        The network is looked for when the first images come. Raises UserError then if it is another one.
        """
        params = ProbeFeatures(features=build["features"])
        num_classes, kernel = int(build["num_classes"]), str(build["kernel"])
        network: list[Network] = []

        def predict(images: torch.Tensor) -> torch.Tensor:
            if not network:
                network.append(_the_same(params, str(build["digest"])))
            x = (features_of(images, network[0], device) - tensors["mean"]) / tensors["std"]
            is_svc = build["classifier"] == "svc"
            scores = svc_scores(tensors, x, kernel) if is_svc else logistic_scores(tensors, x)
            found = torch.zeros(len(x), num_classes)
            found[:, tensors["classes"]] = scores.softmax(1).float()
            return found.to(device)

        return predict


class ProbeFeatures(Section):
    """The part of the parameters that is stored with a classifier."""

    features: FrozenFeatures


def features_of(images: torch.Tensor, network: Network, device: torch.device) -> torch.Tensor:
    """Features float64 [N, D] of uint8 [N, C, H, W], on the CPU; those that are known are not computed."""
    return torch.from_numpy(extract_images(images, network, ExecutionParams.here(str(device)))).double()


def weighty(data: TrainingSet, real_fraction: float) -> TrainingSet:
    """Without real or generated images that a share of 0 or 1 leaves no weight: one kind alone."""
    if not data.mixes or 0 < real_fraction < 1:
        return data
    return TrainingSet([data.sources[0 if real_fraction == 1 else 1]], data.real)


def image_weights(data: TrainingSet, params: ProbeParams) -> torch.Tensor:
    """Weight of each image, float64 [N], 1 on average: C is that of so many equal images.

    Where real and generated images are mixed, real ones have `real_fraction` of all weight before generated
    ones are multiplied by `synthetic_loss_weight`.
    """
    sizes = [len(source) for source in data.sources]
    if not data.mixes:
        return torch.ones(sizes[0], dtype=torch.float64)
    shares = (params.real_fraction, (1 - params.real_fraction) * params.synthetic_loss_weight)
    each = [
        torch.full((n,), sum(sizes) * share / n, dtype=torch.float64)
        for n, share in zip(sizes, shares, strict=True)
    ]
    weights = torch.cat(each)
    return weights / weights.mean()


def standardised(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, Tensors]:
    """Features [N, D] with weighted mean 0 and std 1, and these means and stds; constant ones are 0."""
    share = (weight / weight.sum())[:, None]
    mean = (share * x).sum(0)
    std = (share * (x - mean).square()).sum(0).sqrt()
    std = torch.where(std > 1e-6, std, 1.0)
    return (x - mean) / std, {"mean": mean, "std": std}


def _the_same(params: ProbeFeatures, digest: str) -> Network:
    """The network that a classifier was trained with; raises UserError if its files or code are others."""
    network = find_network(params.features)
    if network.digest != digest:
        raise UserError(
            f"features.path = {params.features.path!r}: not the network that this probe was trained with; "
            "run dvc repro --force --single-item train@ARM: DVC does not see these files"
        )
    return network
