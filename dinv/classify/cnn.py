"""The learner `cnn`: a convolutional network by SGD for a fixed number of steps, the same for every arm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from dinv.classify.architectures import Architecture, Classifier, create_classifier, load_pretrained
from dinv.classify.augment import auto_augment, mix, random_crop, random_horizontal_flip
from dinv.classify.base import Advance, Fitted, LabelledImages, LearnerParams, Predict, TrainingSet
from dinv.classify.batches import make_batches
from dinv.errors import UserError
from dinv.execution.device import computes_bfloat16
from dinv.files import file_digest
from dinv.rng import derive_seed, generator
from dinv.section import Beta, NonNegativeFloat, PositiveFloat, PositiveInt

CURVE_POINTS = 50
PRETRAINED = Path("models/pretrained")  # a dependency of stage train, so that DVC sees a changed file
ONLY_MIXED = {"real_fraction", "mixing", "synthetic_loss_weight"}


class CnnParams(LearnerParams):
    """How the network is trained."""

    architecture: Architecture
    dtype: Literal["float32", "bfloat16"]
    num_steps: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]
    real_fraction: Annotated[float, Field(gt=0, lt=1)]
    mixing: Literal["batch", "replace"]
    synthetic_loss_weight: PositiveFloat
    pretrained: str | None
    lr: PositiveFloat
    warmup_steps: Annotated[int, Field(ge=0)]
    momentum: Beta
    weight_decay: NonNegativeFloat
    label_smoothing: Beta
    random_crop: bool
    horizontal_flip: bool
    auto_augment: Literal["cifar10", "imagenet", "svhn"] | None
    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "CnnParams":
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps must be below num_steps ({self.num_steps})")
        return self


class Cnn:
    """The learner."""

    Params = CnnParams

    @staticmethod
    def settings(params: CnnParams, mixes: bool, device: torch.device) -> dict[str, Any]:
        """All but the mixing, where nothing is mixed; the type that the device really computes in."""
        exclude = {"learner", "seeds", "min_confidence", "pretrained", *(() if mixes else ONLY_MIXED)}
        weights = None if params.pretrained is None else file_digest(pretrained_file(params.pretrained))
        dtype = computed_dtype(params, device)
        return {**params.model_dump(exclude=exclude), "dtype": str(dtype), "pretrained": weights}

    @staticmethod
    def num_units(params: CnnParams) -> int:
        """Images in all steps together."""
        return params.num_steps * params.batch_size

    @staticmethod
    def fit(
        data: TrainingSet, params: CnnParams, seed: int, device: torch.device, advance: Advance
    ) -> Fitted:
        """Train for `params.num_steps` steps. The last step's weights are the result: nothing is selected.

        Batches, augmentation and initial weights follow from `seed`.
        """
        channels, image_size = data.real.images.shape[1:3]
        build: dict[str, Any] = {
            "architecture": params.architecture,
            "num_channels": channels,
            "num_classes": data.num_classes,
            "image_size": image_size,
        }
        # Global random numbers make the initial weights, torchvision's augmentation and dropout.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(seed, "init"))
            mean, std = pixel_statistics(data.real.images)
            classifier = create_classifier(**build, mean=mean, std=std).to(device)
            if params.pretrained is not None:
                load_pretrained(classifier.body, pretrained_file(params.pretrained))
            torch.manual_seed(derive_seed(seed, "training"))
            losses = _fit(classifier, data.sources, params, generator(seed, "train"), device, advance)
        return Fitted(dict(classifier.state_dict()), build, _curve(losses.cpu()))

    @staticmethod
    def load(tensors: dict[str, torch.Tensor], build: dict[str, Any], device: torch.device) -> Predict:
        """The network in eval mode."""
        one = torch.ones(build["num_channels"])
        classifier = create_classifier(**build, mean=one, std=one)
        classifier.load_state_dict(tensors)
        classifier.to(device).eval()
        return lambda images: classifier(images).softmax(1)


def pretrained_file(name: str) -> Path:
    """Path of the weights to start from; raises UserError when there is no such file."""
    path = PRETRAINED / name
    if Path(name).name != name or not path.is_file():
        raise UserError(f"pretrained = {name!r}: no such file in {PRETRAINED}; put it there, or set null")
    return path


def computed_dtype(params: CnnParams, device: torch.device) -> torch.dtype:
    """bfloat16 if asked for and if the device has instructions for it, else float32."""
    use = params.dtype == "bfloat16" and computes_bfloat16(device)
    return torch.bfloat16 if use else torch.float32


def pixel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std per channel of uint8 [N, C, H, W], of pixels in [0, 1]; read in slices."""
    count = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for batch in images.split(1000):
        for channel in range(images.shape[1]):
            count[channel] += torch.bincount(batch[:, channel].flatten(), minlength=256)
    levels = torch.arange(256, dtype=torch.float64) / 255
    n = count.sum(1)
    mean = (count * levels).sum(1) / n
    variance = (count * (levels - mean[:, None]).square()).sum(1) / (n - 1)
    return mean.float(), variance.sqrt().float().clamp_min(1e-3)


def learning_rate(params: CnnParams, step: int) -> float:
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


def _fit(
    classifier: Classifier,
    sources: Sequence[LabelledImages],
    params: CnnParams,
    g: torch.Generator,
    device: torch.device,
    advance: Advance,
) -> torch.Tensor:
    """All steps; returns the loss of each."""
    classifier.train()
    optimizer = torch.optim.SGD(
        classifier.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
    )
    dtype = computed_dtype(params, device)
    losses = []
    for step, batch in zip(range(params.num_steps), make_batches(sources, params, g), strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(params, step)
        images, targets = _augment(batch.images.to(device), batch.targets.to(device), params, g)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = classifier(images).float()
        loss = weighted_cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        advance(params.batch_size)
    return torch.stack(losses)


def _augment(
    images: torch.Tensor, targets: torch.Tensor, params: CnnParams, g: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    if params.random_crop:
        images = random_crop(images, g)
    if params.horizontal_flip:
        images = random_horizontal_flip(images, g)
    if params.auto_augment is not None:
        images = auto_augment(images, params.auto_augment)
    targets = smoothed(targets, params.label_smoothing)
    if params.mixup_alpha + params.cutmix_alpha > 0:
        return mix(images, targets, params.mixup_alpha, params.cutmix_alpha)
    return images, targets


def _curve(losses: torch.Tensor) -> list[tuple[int, float]]:
    interval = max(1, len(losses) // CURVE_POINTS)
    ends = range(interval, len(losses) + 1, interval)
    return [(end, losses[end - interval : end].mean().item()) for end in ends]
