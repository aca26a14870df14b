"""Train a classifier on one or two image sets for a fixed number of steps (METHODS: fixed compute)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from dinv.classify.architectures import Classifier, create_classifier, load_pretrained
from dinv.classify.augment import auto_augment, mix, random_crop, random_horizontal_flip
from dinv.classify.params import TrainParams
from dinv.execution.device import computes_bfloat16
from dinv.rng import derive_seed, generator

CURVE_POINTS = 50


@dataclass(frozen=True)
class LabelledImages:
    """uint8 [N, C, H, W] and int64 [N], on one device.

    `origins`, int64 [N], is the row of the real image that each was generated from; `weight` multiplies the
    loss of each.
    """

    images: torch.Tensor
    labels: torch.Tensor
    origins: torch.Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class TrainingResult:
    """The classifier after the last step, and its mean training loss in each of 50 intervals."""

    classifier: Classifier
    num_classes: int
    image_size: int
    curve: list[tuple[int, float]]


def pixel_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std per channel of uint8 [N, C, H, W], of pixels in [0, 1]."""
    pixels = images.float() / 255
    return pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(1e-3)


def learning_rate(params: TrainParams, step: int) -> float:
    """Linear warm-up times half a cosine from lr to 0.001 lr, as the authors' chained schedule."""
    progress = torch.tensor(step / params.num_steps)
    cosine = 0.001 + 0.999 * 0.5 * (1 + torch.cos(torch.pi * progress)).item()
    warmup = min(1.0, (step + 1) / params.warmup_steps) if params.warmup_steps else 1.0
    return params.lr * warmup * cosine


def index_stream(n: int, batch_size: int, g: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of indices without end: every image once per epoch, in a fresh order each epoch."""
    pending = torch.randperm(n, generator=g)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(n, generator=g)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def batch_sizes(params: TrainParams, num_sources: int) -> list[int]:
    """Images per step from each source: all from one, or `real_fraction` of them from the first."""
    if num_sources == 1:
        return [params.batch_size]
    real = round(params.batch_size * params.real_fraction)
    real = min(max(real, 1), params.batch_size - 1)
    return [real, params.batch_size - real]


@dataclass(frozen=True)
class Batch:
    """uint8 [B, C, H, W], int64 [B], and loss weights [B], None if all are 1."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None


def make_batches(
    sources: Sequence[LabelledImages], params: TrainParams, g: torch.Generator
) -> Iterator[Batch]:
    """Batches without end, as `params.mixing` says where there are two sources."""
    if len(sources) == 2 and params.mixing == "replace":
        return replaced_batches(sources[0], sources[1], params, g)
    return joined_batches(sources, batch_sizes(params, len(sources)), g)


def joined_batches(
    sources: Sequence[LabelledImages], sizes: Sequence[int], g: torch.Generator
) -> Iterator[Batch]:
    """So many images of each source in every batch."""
    streams = [index_stream(len(s.labels), n, g) for s, n in zip(sources, sizes, strict=True)]
    while True:
        rows = [next(stream).to(s.labels.device) for s, stream in zip(sources, streams, strict=True)]
        images = torch.cat([s.images[r] for s, r in zip(sources, rows, strict=True)])
        labels = torch.cat([s.labels[r] for s, r in zip(sources, rows, strict=True)])
        weights = [s.weight for s, r in zip(sources, rows, strict=True) for _ in r]
        yield Batch(images, labels, _loss_weights(weights, labels.device))


def replaced_batches(
    real: LabelledImages, synthetic: LabelledImages, params: TrainParams, g: torch.Generator
) -> Iterator[Batch]:
    """Real batches of which each image, with probability 1 - real_fraction, gives way to one generated
    from it (DA-Fusion, Trabucco et al. 2023). One that has none stays.
    """
    assert synthetic.origins is not None
    by_origin = synthetic.origins.cpu().argsort(stable=True)
    counts = torch.bincount(synthetic.origins.cpu(), minlength=len(real.labels))
    starts = counts.cumsum(0) - counts
    device = real.labels.device
    for rows in index_stream(len(real.labels), params.batch_size, g):
        gives_way = torch.rand(len(rows), generator=g) >= params.real_fraction
        replaced = gives_way & (counts[rows] > 0)
        place = (torch.rand(len(rows), generator=g) * counts[rows]).long()
        chosen = by_origin[(starts[rows] + place)[replaced]].to(device)
        images, labels = real.images[rows.to(device)], real.labels[rows.to(device)]
        images[replaced.to(device)] = synthetic.images[chosen]
        weights = [synthetic.weight if r else real.weight for r in replaced.tolist()]
        yield Batch(images, labels, _loss_weights(weights, device))


def _loss_weights(weights: Sequence[float], device: torch.device) -> torch.Tensor | None:
    return None if set(weights) == {1.0} else torch.tensor(weights, device=device)


def weighted_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy, mean over the batch weighted by `weights` [B]; labels are classes or probabilities."""
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (weights * losses).sum() / weights.sum()


def train_classifier(
    sources: Sequence[LabelledImages],
    num_classes: int,
    statistics: tuple[torch.Tensor, torch.Tensor],
    params: TrainParams,
    seed: int,
    advance: Callable[[int], None] = lambda _: None,
) -> TrainingResult:
    """Train with SGD for `params.num_steps` steps, on one source or on real and synthetic mixed.

    Batches, augmentation and initial weights follow from `seed`. `advance(n)` is called as n
    images are done. The last step's weights are the result: nothing is selected.
    """
    device = sources[0].images.device
    channels, image_size = sources[0].images.shape[1:3]
    # Global random numbers make the initial weights, torchvision's augmentation and dropout.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "init"))
        classifier = create_classifier(
            params.architecture, channels, num_classes, params.width, image_size, *statistics
        ).to(device)
        if params.pretrained is not None:
            load_pretrained(classifier.body, Path(params.pretrained))
        torch.manual_seed(derive_seed(seed, "training"))
        losses = _fit(classifier, num_classes, sources, params, generator(seed, "train"), advance)
    return TrainingResult(classifier.eval(), num_classes, image_size, _curve(losses.cpu()))


def _fit(
    classifier: Classifier,
    num_classes: int,
    sources: Sequence[LabelledImages],
    params: TrainParams,
    g: torch.Generator,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """All steps; returns the loss of each."""
    device = sources[0].images.device
    classifier.train()
    optimizer = torch.optim.SGD(
        classifier.parameters(), params.lr, params.momentum, weight_decay=params.weight_decay
    )
    use_bfloat16 = params.dtype == "bfloat16" and computes_bfloat16(device)
    losses = []
    for step, batch in zip(range(params.num_steps), make_batches(sources, params, g), strict=False):
        optimizer.param_groups[0]["lr"] = learning_rate(params, step)
        images, labels = _augment(batch.images, params, g), batch.labels
        if params.mixup_alpha + params.cutmix_alpha > 0:
            images, labels = mix(images, labels, num_classes, params.mixup_alpha, params.cutmix_alpha)
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
            logits = classifier(images).float()
        loss = weighted_cross_entropy(logits, labels, batch.weights, params.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        advance(params.batch_size)
    return torch.stack(losses)


def _augment(images: torch.Tensor, params: TrainParams, g: torch.Generator) -> torch.Tensor:
    if params.random_crop:
        images = random_crop(images, g)
    if params.horizontal_flip:
        images = random_horizontal_flip(images, g)
    return images if params.auto_augment is None else auto_augment(images, params.auto_augment)


def _curve(losses: torch.Tensor) -> list[tuple[int, float]]:
    interval = max(1, len(losses) // CURVE_POINTS)
    ends = range(interval, len(losses) + 1, interval)
    return [(end, losses[end - interval : end].mean().item()) for end in ends]


@torch.no_grad()
def predict_proba(classifier: Classifier, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """Class probabilities float32 [N, M] of uint8 images [N, C, H, W]."""
    return torch.cat([classifier(batch).softmax(1) for batch in images.split(batch_size)])
