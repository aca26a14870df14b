"""Measure every classifier on real images it has not seen, and write metrics/.

python -m stages.evaluate
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinv.classify.store import StoredClassifier, load_classifiers
from dinv.classify.train import predict_proba
from dinv.errors import UserError
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.files import atomic_write, write_json
from dinv.images.image_set import ImageSet, load_image_set
from dinv.inversion.bank import LossCurves, load_part, loss_curves, part_paths
from dinv.metrics.accuracy import balanced_accuracy, per_class_accuracy, top1_accuracy
from dinv.metrics.calibration import expected_calibration_error
from dinv.metrics.params import EvaluateParams
from dinv.metrics.report import Score, markdown_table, summary
from dinv.metrics.tables import write_csv
from dinv.params import ARMS
from stages.runner import run

Array = NDArray[np.int64]
METRICS = Path("metrics")
CURVE_POINTS = 40


def main(evaluate: EvaluateParams, execution: ExecutionParams) -> None:
    device = resolve_device(execution.device)
    arms = {arm: load_classifiers(Path("data/classifiers") / arm) for arm in ARMS}
    require_equal_seeds(arms)
    splits = {s: load_image_set(Path("data/real") / s) for s in ("val", "test")}
    scored = [
        score(classifier, arm, split, images, device)
        for arm, classifiers in arms.items()
        for classifier in classifiers
        for split, images in splits.items()
        if len(images)
    ]
    scores = [s for s, _ in scored]
    on_test = [(s, predicted) for s, predicted in scored if s.split == "test"]
    curves = loss_curves(map(load_part, part_paths(Path("data/embeddings"))))
    losses = {"first": round(curves.heldout[0].item(), 5), "last": round(curves.heldout[-1].item(), 5)}
    write_json(METRICS / "summary.json", {**summary(scores, ARMS), "heldout_loss": losses})
    write_csv(METRICS / "accuracy.csv", [vars(s) for s in scores])
    by_class = [row for s, predicted in on_test for row in class_rows(splits["test"], s, predicted)]
    write_csv(METRICS / "class_accuracy.csv", by_class)
    first = next(predicted for s, predicted in on_test if s.arm == evaluate.confusion_arm)
    write_csv(METRICS / "confusion.csv", confusion_rows(splits["test"], first))
    write_csv(METRICS / "classifier_loss.csv", classifier_curve(arms))
    write_csv(METRICS / "inversion_loss.csv", inversion_curve(curves))
    write_csv(METRICS / "inversion_heldout_loss.csv", heldout_curve(curves))
    shutil.copyfile("data/grid.png", METRICS / "grid.png")
    table = markdown_table(scores, ARMS, {arm: cs[0].num_images for arm, cs in arms.items()})
    with atomic_write(METRICS / "table.md") as temporary:
        temporary.write_text(table)
    print(f"\n{table}\nPictures: metrics/grid.png, and dvc plots show")


def require_equal_seeds(arms: dict[str, list[StoredClassifier]]) -> None:
    seeds = {arm: sorted(c.seed for c in classifiers) for arm, classifiers in arms.items()}
    for arm, found in seeds.items():
        if found != seeds["real"]:
            raise UserError(
                f"data/classifiers/{arm}: seeds {found}, but real has {seeds['real']}; run dvc repro"
            )


def score(
    stored: StoredClassifier, arm: str, split: str, images: ImageSet, device: torch.device
) -> tuple[Score, Array]:
    """A classifier's score on a split, and the classes that it predicts."""
    probabilities = predict_proba(stored.classifier.to(device), images.tensor().to(device)).cpu().numpy()
    predicted = probabilities.argmax(1)
    numbers = (
        top1_accuracy(images.labels, predicted),
        balanced_accuracy(images.labels, predicted),
        expected_calibration_error(images.labels, probabilities),
    )
    return Score(arm, stored.seed, split, *(round(n, 4) for n in numbers)), predicted


def class_rows(images: ImageSet, score: Score, predicted: Array) -> list[dict[str, Any]]:
    """Test accuracy of every class that has images."""
    accuracy = per_class_accuracy(images.labels, predicted)
    return [
        {"arm": score.arm, "seed": score.seed, "class": images.class_names[k], "accuracy": round(a, 4)}
        for k, a in accuracy.items()
    ]


def confusion_rows(images: ImageSet, predicted: Array) -> list[dict[str, str]]:
    names = images.class_names
    pairs = zip(images.labels, predicted, strict=True)
    return [{"actual": names[a], "predicted": names[int(p)]} for a, p in pairs]


def classifier_curve(arms: dict[str, list[StoredClassifier]]) -> list[dict[str, Any]]:
    """Training loss of every arm, mean over seeds."""
    mean = {arm: np.mean([[y for _, y in c.curve] for c in cs], 0) for arm, cs in arms.items()}
    steps = [step for step, _ in arms["real"][0].curve]
    return [
        {"step": step, **{arm: round(float(mean[arm][i]), 5) for arm in arms}} for i, step in enumerate(steps)
    ]


def inversion_curve(curves: LossCurves) -> list[dict[str, Any]]:
    """Training loss, mean over images and over intervals of visits."""
    losses = curves.train
    interval = max(1, len(losses) // CURVE_POINTS)
    ends = range(interval, len(losses) + 1, interval)
    return [
        {"visit": end, "denoising_loss": round(losses[end - interval : end].mean().item(), 6)} for end in ends
    ]


def heldout_curve(curves: LossCurves) -> list[dict[str, Any]]:
    """Loss on fixed draws never trained on, mean over images."""
    return [
        {"visit": int(visit), "heldout_denoising_loss": round(loss.item(), 6)}
        for visit, loss in zip(curves.heldout_visits, curves.heldout, strict=True)
    ]


if __name__ == "__main__":
    run("evaluate", main)
