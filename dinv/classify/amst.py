"""The learner `amst`: a network labels generated images itself, by heads that learn from real images only.

Asymmetric multi-head self-training of DreamDA (Fu et al. 2024, arXiv 2403.12803): one main and four auxiliary
heads; a generated image gets a pseudo label where the auxiliary heads agree and are confident. The authors
have not published their code, and what their description leaves open is decided here.
"""

from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from dinv.classify.architectures import Architecture, Classifier, create_classifier
from dinv.classify.augment import augment
from dinv.classify.base import Advance, Fitted, LabelledImages, Predict, TrainingSet
from dinv.classify.batches import make_batches
from dinv.classify.cnn import pixel_statistics
from dinv.classify.training import (
    TrainingParams,
    computed_dtype,
    curve_of,
    learning_rate,
    smoothed,
    training_settings,
)
from dinv.errors import UserError
from dinv.rng import derive_seed, generator
from dinv.section import Beta


class AmstParams(TrainingParams):
    """The network, what SGD has besides, and when a pseudo label is given."""

    architecture: Architecture
    momentum: Beta
    num_auxiliary_heads: Annotated[int, Field(ge=2)]
    min_pseudo_confidence: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _labels_are_its_own(self) -> "AmstParams":
        if self.soft_labels != "none":
            raise ValueError("amst labels generated images itself; set soft_labels to none")
        if self.unlabelled_weight > 0:
            raise ValueError("amst labels generated images itself; set unlabelled_weight to 0")
        return self


def pseudo_labels(p: torch.Tensor, min_confidence: float) -> torch.Tensor:
    """One-hot of the class that all heads name with that mean probability at least, else zeros: [B, M].

    Args:
        p: class probabilities of the auxiliary heads, float32 [B, H, M].
        min_confidence: tau.
    """
    confidence, label = p.mean(1).max(1)
    consistent = (p.argmax(2) == label[:, None]).all(1)
    return F.one_hot(label, p.shape[2]).float() * (consistent & (confidence >= min_confidence))[:, None]


def heads_loss(logits: torch.Tensor, main: torch.Tensor, auxiliary: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the main head, and the mean of those of the auxiliary ones.

    Each is a mean over the batch that its targets' sums weight; targets that are all 0 give 0.

    Args:
        logits: float32 [B, 1 + H, M], the main head's first.
        main: targets times weights of the main head, [B, M].
        auxiliary: likewise of the auxiliary heads, [B, M].
    """
    logs = F.log_softmax(logits, 2)
    of_main = -(main * logs[:, 0]).sum() / main.sum().clamp_min(1e-12)
    of_others = -(auxiliary[:, None] * logs[:, 1:]).sum((0, 2)) / auxiliary.sum().clamp_min(1e-12)
    return of_main + of_others.mean()


class Amst:
    """The learner.

    Real images train all heads with their labels. A generated image's own label is not looked at: it trains
    the main head with its pseudo label, or nothing. The heads share all layers but the last.
    """

    Params = AmstParams

    @staticmethod
    def settings(params: AmstParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """Those of the training; the confidence only where there is something to label."""
        settings = training_settings(params, mixes, device)
        return settings if mixes else {k: v for k, v in settings.items() if k != "min_pseudo_confidence"}

    @staticmethod
    def num_units(params: AmstParams) -> int:
        """Images in all steps together."""
        return params.num_steps * params.batch_size

    @staticmethod
    def fit(
        data: TrainingSet, params: AmstParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """SGD for `params.num_steps` steps; batches, augmentation and initial weights follow from `seed`.

        Raises:
            UserError: there are generated images only.
        """
        if data.sources[0].origins is not None:
            raise UserError(
                "learner amst: real images teach it the labels of generated ones; set real: true in its arm"
            )
        channels, image_size = data.real.images.shape[1:3]
        build: dict[str, Any] = {
            "architecture": params.architecture,
            "num_channels": channels,
            "num_classes": data.num_classes * (1 + params.num_auxiliary_heads),
            "image_size": image_size,
        }
        # Global random numbers make the initial weights, torchvision's augmentation and dropout.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "init"))
            mean, std = pixel_statistics(data.real.images)
            classifier = create_classifier(**build, mean=mean, std=std).to(device)
            torch.manual_seed(derive_seed(seed, "training"))
            curve = train_heads(classifier, data, params, generator(seed, "train"), device, advance)
        return Fitted(
            dict(classifier.state_dict()), {**build, "num_heads": 1 + params.num_auxiliary_heads}, curve
        )

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """The main head, in eval mode."""
        one = torch.ones(build["num_channels"])
        network = {k: v for k, v in build.items() if k != "num_heads"}
        classifier = create_classifier(**network, mean=one, std=one)
        classifier.load_state_dict(tensors)
        classifier.to(device).eval()
        return lambda images: by_head(classifier(images), build["num_heads"])[:, 0].softmax(1)


def by_head(outputs: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The last layer's outputs [B, (1 + H) M] as logits of heads, [B, 1 + H, M]."""
    return outputs.unflatten(1, (num_heads, -1))


def for_heads(images: LabelledImages) -> LabelledImages:
    """With targets [N, 2 M]: for the main head and for the auxiliary ones, 0 for generated images."""
    known = images.targets if images.origins is None else torch.zeros_like(images.targets)
    return replace(images, targets=torch.cat([images.targets, known], 1))


@torch.no_grad()
def relabelled(
    classifier: Classifier, images: torch.Tensor, targets: torch.Tensor, params: AmstParams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets [B, M] of the main and of the auxiliary heads, from those of `for_heads`: generated images get
    their weight times the pseudo label that the network, in eval mode, gives them as they are.
    """
    main, auxiliary = targets.chunk(2, 1)
    generated = auxiliary.sum(1) == 0
    if generated.any():
        classifier.eval()
        logits = by_head(classifier(images[generated]).float(), 1 + params.num_auxiliary_heads)
        classifier.train()
        main = main.clone()
        weight = main[generated].sum(1, keepdim=True)
        main[generated] = weight * pseudo_labels(logits[:, 1:].softmax(2), params.min_pseudo_confidence)
    return main, auxiliary


def train_heads(
    classifier: Classifier,
    data: TrainingSet,
    params: AmstParams,
    g: torch.Generator,
    device: torch.device,
    advance: Advance,
) -> list[tuple[int, float]]:
    """All steps; returns the curve of losses. The last step's weights are the result."""
    classifier.train()
    optimizer = torch.optim.SGD(
        classifier.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
    )
    sources, dtype, losses = [for_heads(s) for s in data.sources], computed_dtype(params, device), []
    for step, batch in zip(range(params.num_steps), make_batches(sources, params, g), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step)
        images = batch.images.to(device)
        # Two blocks: autocast caches weights, and must not use those of a pass without gradient again.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            labels = relabelled(classifier, images, batch.targets.to(device), params)
        targets = torch.cat([smoothed(t, params.label_smoothing) for t in labels], 1)
        # Both kinds of targets are mixed as the images are.
        images, targets = augment(images, targets, params, g, batch.partners)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = by_head(classifier(images).float(), 1 + params.num_auxiliary_heads)
        loss = heads_loss(logits, *targets.chunk(2, 1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        advance(params.batch_size)
    return curve_of(torch.stack(losses).cpu())
