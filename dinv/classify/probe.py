"""The learner `probe`: logistic regression or a support vector machine on frozen features.

Features are computed once per image and kept: another C, another kernel or fewer images compute none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, model_validator

from dinv.classify.base import (
    NOT_OF_TRAINING,
    Advance,
    Fitted,
    MixedParams,
    Predict,
    TrainingSet,
)
from dinv.classify.cross_validation import kept_images, scores, splits
from dinv.classify.feature_params import FrozenFeatures, UNetFeatures
from dinv.classify.frozen import find_network
from dinv.classify.heads import Tensors, fit_logistic, fit_svc, logistic_scores, svc_scores, weighted_rows
from dinv.classify.strength import best_strength
from dinv.errors import UserError
from dinv.execution.params import ExecutionParams
from dinv.features.cache import Network, extract_images
from dinv.section import Section

ONLY_MIXED = {"real_fraction", "synthetic_loss_weight"}
SEARCHED = "cross_validation"


def _a_strength(value: float | str) -> float | str:
    if value == SEARCHED or (isinstance(value, float) and 0 < value < float("inf")):
        return value
    raise ValueError(f"{value!r} is neither a number greater than 0 nor {SEARCHED}")


class ProbeParams(MixedParams):
    """Which features, and how they are classified. No random number is drawn, so one seed is enough."""

    features: FrozenFeatures
    classifier: Literal["logistic", "svc"]
    kernel: Literal["linear", "rbf"]
    C: Annotated[float | str, AfterValidator(_a_strength)]

    @property
    def generators(self) -> tuple[str, ...]:
        """The teacher's, and the diffusion model if that is what the features are of."""
        own = (self.features.path,) if isinstance(self.features, UNetFeatures) else ()
        return (*super().generators, *own)

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
        features = [replace(s, images=features_of(s.images, network, device)) for s in data.sources]
        known = TrainingSet(features, data.real)
        c = chosen_strength(data, known, params) if isinstance(params.C, str) else params.C
        head, scaling = fit_head(known, params, c)
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
            x = features_of(images, network[0], device)
            found = torch.zeros(len(x), num_classes)
            logits = head_scores(tensors, tensors, x, build["classifier"], kernel)
            found[:, tensors["classes"]] = logits.softmax(1).float()
            return found.to(device)

        return predict


class ProbeFeatures(Section):
    """The part of the parameters that is stored with a classifier."""

    features: FrozenFeatures


def features_of(images: torch.Tensor, network: Network, device: torch.device) -> torch.Tensor:
    """Features float64 [N, D] of uint8 [N, C, H, W], on the CPU; those that are known are not computed."""
    return torch.from_numpy(extract_images(images, network, ExecutionParams.here(str(device)))).double()


def fit_head(known: TrainingSet, params: ProbeParams, c: float) -> tuple[Tensors, Tensors]:
    """Head and scaling of images that are known by their features, float64 [N, D] in place of pixels.

    Raises:
        UserError: there is one class only.
    """
    targets = torch.cat([source.targets for source in known.sources])
    rows, labels, weight = weighted_rows(targets, image_weights(known, params))
    if len(labels.unique()) < 2:
        raise UserError("learner probe: the training images are of one class; at least two are needed")
    x, scaling = standardised(torch.cat([source.images for source in known.sources])[rows], weight)
    if params.classifier == "logistic":
        return fit_logistic(x, labels, weight, c), scaling
    return fit_svc(x, labels, weight, c, params.kernel), scaling


def head_scores(
    head: Tensors, scaling: Tensors, x: torch.Tensor, classifier: str, kernel: str
) -> torch.Tensor:
    """[B, number of classes that were seen] of features [B, D]."""
    x = (x - scaling["mean"]) / scaling["std"]
    return svc_scores(head, x, kernel) if classifier == "svc" else logistic_scores(head, x)


def chosen_strength(data: TrainingSet, known: TrainingSet, params: ProbeParams) -> float:
    """The C with most right answers on training images that are held out in turn; of equals the likeliest.

    Args:
        data: the images.
        known: the same with features in place of pixels.
        params: what is fitted.

    Raises:
        UserError: no class has two images, or no generated image is left without those held out.
    """
    divisions = [(kept_images(known, split), split.scored) for split in splits(data)]
    if not divisions:
        raise UserError(
            f"C = {SEARCHED!r}: no image can be held out, as no class has two or each generated "
            "image is of one that is; set a number"
        )

    def quality(c: float) -> tuple[int, float]:
        found = [_held_out(fit_head(kept, params, c), known, rows, params) for kept, rows in divisions]
        return sum(right for right, _ in found), sum(likelihood for _, likelihood in found)

    return best_strength(quality)


def _held_out(
    fitted: Sequence[Tensors], known: TrainingSet, rows: torch.Tensor, params: ProbeParams
) -> tuple[int, float]:
    """Right answers and log-likelihood of some images of the first source."""
    first = known.sources[0]
    head, scaling = fitted
    logits = torch.full((len(rows), known.num_classes), -torch.inf, dtype=torch.float64)
    logits[:, head["classes"]] = head_scores(
        head, scaling, first.images[rows], params.classifier, params.kernel
    )
    right, likelihood = scores(logits, first.targets[rows].argmax(1))
    return int(right), float(likelihood)


def weighty(data: TrainingSet, real_fraction: float) -> TrainingSet:
    """Without real or generated images that a share of 0 or 1 leaves no weight: one kind alone."""
    if not data.mixes or 0 < real_fraction < 1:
        return data
    kind = data.sources[0 if real_fraction == 1 else 1]
    return TrainingSet([kind], data.real, data.class_names)


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
            "run dvc repro"
        )
    return network
