"""Training a network on pixels for a fixed number of steps: what learners that do so have in common."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from dinv.classify.architectures import Classifier
from dinv.classify.augment import augment
from dinv.classify.base import NOT_OF_TRAINING, Advance, LabelledImages, MixedParams
from dinv.classify.batches import make_batches
from dinv.classify.consistency import (
    ConsistencyParams,
    UnlabelledViews,
    consistency_loss,
    unlabelled_views,
)
from dinv.execution.device import computes_bfloat16
from dinv.section import Beta, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt

CURVE_POINTS = 50
ONLY_MIXED = {
    "real_fraction",
    "real_fraction_schedule",
    "real_fraction_end",
    "finish_on_real",
    "mixing",
    "mix_partners",
    "synthetic_loss_weight",
    "unlabelled_weight",
    "unlabelled_ratio",
    "unlabelled_threshold",
    "strong_ops",
    "strong_magnitude",
    "strong_erasing",
}


class TrainingParams(MixedParams, ConsistencyParams):
    """How a network is trained."""

    dtype: Literal["float32", "bfloat16"]
    num_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    real_fraction_schedule: Literal["constant", "linear", "cosine"] = "constant"
    real_fraction_end: Fraction = 1.0
    finish_on_real: Beta = 0.0
    mixing: Literal["batch", "replace"]
    lr: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: NonNegativeFloat
    label_smoothing: Beta

    @model_validator(mode="after")
    def _one_share_is_chosen(self) -> "TrainingParams":
        if self.choose_real != "none" and self.real_fraction_schedule != "constant":
            raise ValueError("choose_real chooses one share; set real_fraction_schedule to constant")
        if self.choose_real != "none" and self.unlabelled_weight > 0:
            raise ValueError(
                "choose_real leaves generated images out; set it to none, or unlabelled_weight to 0"
            )
        return self

    @property
    def only_real(self) -> bool:
        """Whether an arm that mixes learns from real images only after all."""
        all_labels_are_real = self.real_fraction == 1 and self.real_fraction_schedule == "constant"
        return all_labels_are_real and self.unlabelled_weight == 0

    @property
    def needs_real_labels(self) -> bool:
        """Whether it learns from generated images in a way that has no meaning without real ones."""
        return self.unlabelled_weight > 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "TrainingParams":
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps must be below num_steps ({self.num_steps})")
        return self


def training_settings(params: TrainingParams, mixes: bool, device: torch.device) -> dict[str, Any]:
    """All but the mixing, where nothing is mixed; the type that the device really computes in."""
    exclude = {*NOT_OF_TRAINING, *(() if mixes else ONLY_MIXED)}
    return {**params.model_dump(exclude=exclude), "dtype": str(computed_dtype(params, device))}


def computed_dtype(params: TrainingParams, device: torch.device) -> torch.dtype:
    """bfloat16 if asked for and if the device has instructions for it, else float32."""
    use = params.dtype == "bfloat16" and computes_bfloat16(device)
    return torch.bfloat16 if use else torch.float32


def learning_rate(params: TrainingParams, step: int) -> float:
    """Linear warm-up times half a cosine from lr to 0.001 lr, as the authors' chained schedule."""
    progress = torch.tensor(step / params.num_steps)
    cosine = 0.001 + 0.999 * 0.5 * (1 + torch.cos(torch.pi * progress)).item()
    warmup = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    return params.lr * warmup * cosine


def smoothed(targets: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Weighted targets [B, M] with that share of each row's sum spread over all classes."""
    share = targets.sum(1, keepdim=True) / targets.shape[1]
    return (1 - label_smoothing) * targets + label_smoothing * share


def weighted_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits [B, M], mean over the batch, weighted by the sums of the rows of targets."""
    return -(targets * F.log_softmax(logits, 1)).sum() / targets.sum()


def train_network(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    sources: Sequence[LabelledImages],
    params: TrainingParams,
    g: torch.Generator,
    device: torch.device,
    advance: Advance,
    before_step: Callable[[int], None] = lambda step: None,
) -> list[tuple[int, float]]:
    """All steps; returns the curve of losses. The last step's weights are the result: nothing is selected.

    Groups of the optimiser may have `lr_scale`, a factor of their learning rate.
    """
    classifier.train()
    dtype = computed_dtype(params, device)
    unlabelled = unlabelled_views(sources, params, params.batch_size, g.initial_seed())
    losses = []
    for step, batch in zip(range(params.num_steps), make_batches(sources, params, g), strict=False):
        before_step(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step) * group.get("lr_scale", 1.0)
        targets = smoothed(batch.targets.to(device), params.label_smoothing)
        images, targets = augment(batch.images.to(device), targets, params, g, batch.partners)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits, *views = forward(classifier, images, unlabelled)
        loss = weighted_cross_entropy(logits, targets)
        if views:
            strong, weak = views
            of_unlabelled = consistency_loss(strong, weak, params.unlabelled_threshold)
            loss = loss + params.unlabelled_weight * of_unlabelled
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        advance(params.batch_size)
    return curve_of(torch.stack(losses).cpu())


def forward(
    classifier: Classifier, images: torch.Tensor, unlabelled: UnlabelledViews | None
) -> list[torch.Tensor]:
    """Logits of a batch, float32; with unlabelled images, those of the next strong and weak views, too.

    One pass of the batch together with the strong views, then one of the weak views without gradient: in the
    other order autocast would keep weights that know no gradient.
    """
    if unlabelled is None:
        return [classifier(images).float()]
    weak, strong = unlabelled.take(images.device)
    logits = classifier(torch.cat([images.float(), strong.float()])).float()
    with torch.no_grad():
        of_weak = classifier(weak).float()
    return [logits[: len(images)], logits[len(images) :], of_weak]


def curve_of(losses: torch.Tensor) -> list[tuple[int, float]]:
    """At most 99 points (step, mean loss until then) of all losses, float [num_steps]."""
    interval = max(1, len(losses) // CURVE_POINTS)
    ends = range(interval, len(losses) + 1, interval)
    return [(end, losses[end - interval : end].mean().item()) for end in ends]
