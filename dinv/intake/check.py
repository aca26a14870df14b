"""`dinv check`: what may be wrong with the task of params.yaml, before anything long runs."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dinv.diffusion.loading import fetch_model
from dinv.errors import UserError
from dinv.features.cache import Network, extract_images
from dinv.images.split import keyed_order
from dinv.intake.autoencoder import Loss, autoencoder_findings, loss_of
from dinv.intake.duplicates import duplicate_findings
from dinv.intake.finding import REASONS, Finding, of_picture
from dinv.intake.labels import NUM_FITS, Probabilities, folds, likely_wrong, out_of_fold
from dinv.intake.networks import UNET, Seen, named_network, network_for_labels
from dinv.intake.pictures import class_findings, picture_findings, single_colour
from dinv.intake.survey import Survey, survey
from dinv.intake.thresholds import Thresholds
from dinv.params import Params
from dinv.sources.task import load_task


@dataclass(frozen=True)
class CheckOptions:
    """What the user says.

    Attributes:
        output: folder for the list, the sheet and the summary.
        features: unet, or a block of measure.features, whose features labels are checked with.
        quick: without labels and autoencoder, which need networks.
        num_images: pictures that the autoencoder is tried on, at most.
    """

    output: Path = Path("data/check")
    features: str = UNET
    quick: bool = False
    num_images: int = 1000
    limits: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Checked:
    """All findings in the order of REASONS, and what else was measured; None where it was not.

    Attributes:
        label_accuracy: how often the classifier that doubts labels is right on held-out pictures.
    """

    survey: Survey
    findings: list[Finding]
    label_accuracy: float | None
    loss: Loss | None


def find(params: Params, options: CheckOptions) -> Checked:
    """All that may be wrong; nothing is written. Raises UserError."""
    if options.num_images < 1:
        raise UserError(f"--num-images {options.num_images}: must be at least 1")
    networks = None if options.quick else _networks(params, options)  # what is missing is said at once
    seen = survey(load_task(params.data), params.model.resolution)
    limits, flat = options.limits, single_colour(seen, options.limits)
    found = picture_findings(seen, limits, params.data.resolution, params.data.mode == "RGB")
    found += duplicate_findings(seen, limits.near_bits, flat) + class_findings(seen, limits)
    accuracy, loss = None, None
    rows = np.setdiff1d(seen.readable, flat)
    if networks is not None and len(np.unique(seen.labels[rows])) > 1:
        labels, accuracy = _labels(seen, rows, networks[0], params, limits)
        loss = _autoencoder(seen, rows, networks[1:], params, options.num_images)
        found += labels + autoencoder_findings(loss, limits.loss)
    order = list(REASONS)
    return Checked(seen, sorted(found, key=lambda f: order.index(f.reason)), accuracy, loss)


def _networks(params: Params, options: CheckOptions) -> tuple[Network, Network, Network]:
    """What sees labels, what sees originals, and what sees reconstructions; raises UserError."""
    measured, name = params.measure.features, options.features
    labels = network_for_labels(name, params.model, measured)
    inner = named_network(name if name != UNET else next(iter(measured)), measured)
    folder = fetch_model(params.model).absolute()
    side = params.data.resolution
    before, after = (Seen(inner, side, folder, params.model, through) for through in (False, True))
    return labels, before, after


def _labels(
    seen: Survey, rows: NDArray[np.int64], network: Network, params: Params, limits: Thresholds
) -> tuple[list[Finding], float]:
    """Doubtful labels, the most doubtful first, and how often the classifier is right."""
    p = _probabilities(seen, rows, network, params)
    labels = seen.labels[rows]
    found = []
    for i in likely_wrong(p, labels, limits.doubt):
        other = int(p[i].argmax())
        doubt = round(float(p[i, other] - p[i, labels[i]]), 3)
        note = f"{p[i, other]:.0%} against {p[i, labels[i]]:.0%}"
        found.append(of_picture(seen, int(rows[i]), "label", doubt, seen.class_names[other], note=note))
    return found, float((p.argmax(1) == labels).mean())


def _autoencoder(
    seen: Survey, rows: NDArray[np.int64], networks: tuple[Network, ...], params: Params, num_images: int
) -> Loss:
    """The same pictures before and after."""
    chosen = keyed_order([seen.ids[row] for row in rows], 0, "check autoencoder")[:num_images]
    rows = rows[sorted(chosen)]
    before, after = (_probabilities(seen, rows, network, params) for network in networks)
    return loss_of(before, after, seen.labels[rows])


def _probabilities(seen: Survey, rows: NDArray[np.int64], network: Network, params: Params) -> Probabilities:
    """Out-of-fold class probabilities of some rows, float64 [n, M]; finished features are used again."""
    pixels = torch.from_numpy(seen.pixels)[torch.from_numpy(rows)]
    features = extract_images(pixels, network, params.execution)
    labels = seen.labels[rows]
    fold = folds(labels, [seen.ids[row] for row in rows])
    with tqdm(total=NUM_FITS, desc=f"classify {network.network}", unit="fit", leave=False) as bar:
        return out_of_fold(features, labels, fold, len(seen.class_names), bar.update)
