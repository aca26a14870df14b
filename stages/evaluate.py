"""Measure every classifier on real images it has not seen, and write metrics/.

python -m stages.evaluate
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dinv.classify.arms import REAL, Arm, baselines
from dinv.classify.store import StoredClassifier, load_classifiers
from dinv.execution.device import resolve_device
from dinv.execution.params import ExecutionParams
from dinv.files import atomic_write, write_json
from dinv.images.grid import labelled_grid
from dinv.images.image_set import ImageSetReader, MappedImageSet, load_image_set
from dinv.metrics.accuracy import balanced_accuracy, per_class_accuracy, top1_accuracy
from dinv.metrics.calibration import expected_calibration_error
from dinv.metrics.report import accuracy_table, summary
from dinv.metrics.tables import write_csv, write_text
from stages.runner import run
from stages.stale import remove_stale

Images = NDArray[np.uint8]
METRICS = Path("metrics")
CLASSIFIERS, PREVIEWS, CURVES = "data/classifiers", "data/previews", "data/curves"
GRID_COLUMNS = 10


def main(
    arms: Mapping[str, Arm],
    invert: Mapping[str, Any],
    generate: Mapping[str, Any],
    execution: ExecutionParams,
) -> None:
    remove_stale({CLASSIFIERS: arms, PREVIEWS: generate, CURVES: invert})
    device = resolve_device(execution.device)
    trained = {arm: load_classifiers(Path(CLASSIFIERS) / arm) for arm in arms}
    results = evaluate(trained, device)
    learned = learned_losses(invert)
    scores = results["scores"]
    numbers = {**summary(scores, baselines(arms)), "heldout_loss": heldout_losses(learned)}
    write_json(METRICS / "summary.json", numbers)
    write_csv(METRICS / "accuracy.csv", scores)
    write_csv(METRICS / "class_accuracy.csv", results["classes"])
    write_csv(METRICS / "confusion.csv", results["confusion"])
    write_csv(METRICS / "classifier_loss.csv", classifier_losses(trained))
    write_csv(METRICS / "learned_loss.csv", learned)
    with atomic_write(METRICS / "grid.png") as temporary:
        labelled_grid(grid_rows(generate)).save(temporary, format="PNG")
    num_images = {arm: stored[0].num_images for arm, stored in trained.items()}
    table = accuracy_table(scores, baselines(arms), num_images)
    write_text(METRICS / "table.md", table)
    print(f"\n{table}\nPictures: metrics/grid.png, and dvc plots show")


def evaluate(
    trained: Mapping[str, Sequence[StoredClassifier]], device: torch.device
) -> dict[str, pd.DataFrame]:
    """Scores of every classifier on every split; on test also its classes, and confusion for first seeds."""
    splits = {split: ImageSetReader(Path("data/real") / split).mapped() for split in ("val", "test")}
    scores: list[dict[str, Any]] = []
    classes: list[pd.DataFrame] = []
    confusion: list[pd.DataFrame] = []
    for arm, stored in ((arm, stored) for arm, of_arm in trained.items() for stored in of_arm):
        for split, images in splits.items():
            if len(images) == 0:
                continue
            probabilities = stored.predict_proba(images.tensor(), device)
            scores.append({"arm": arm, "seed": stored.seed, "split": split, **score(images, probabilities)})
            if split == "test":
                classes.append(class_table(images, probabilities, arm, stored.seed))
            if split == "test" and stored is trained[arm][0]:
                confusion.append(confusion_table(images, probabilities, arm))
    return {
        "scores": pd.DataFrame(scores),
        "classes": pd.concat(classes),
        "confusion": pd.concat(confusion),
    }


def score(images: MappedImageSet, probabilities: NDArray[np.float32]) -> dict[str, float]:
    """Three numbers in percent."""
    predicted = probabilities.argmax(1)
    found = {
        "top1_accuracy": top1_accuracy(images.labels, predicted),
        "balanced_accuracy": balanced_accuracy(images.labels, predicted),
        "expected_calibration_error": expected_calibration_error(images.labels, probabilities),
    }
    return {name: round(value, 4) for name, value in found.items()}


def class_table(
    images: MappedImageSet, probabilities: NDArray[np.float32], arm: str, seed: int
) -> pd.DataFrame:
    """Test accuracy of every class that has images."""
    accuracy = per_class_accuracy(images.labels, probabilities.argmax(1))
    names = [images.class_names[k] for k in accuracy]
    values = [round(value, 4) for value in accuracy.values()]
    return pd.DataFrame({"arm": arm, "seed": seed, "class": names, "accuracy": values})


def confusion_table(images: MappedImageSet, probabilities: NDArray[np.float32], arm: str) -> pd.DataFrame:
    """How many images of each class are taken for each, pairs that occur, in order of class."""
    pairs = pd.DataFrame({"actual": images.labels, "predicted": probabilities.argmax(1)})
    counts = pairs.value_counts(sort=False).sort_index().reset_index(name="count")
    names = np.asarray(images.class_names, dtype=object)
    named = counts.assign(actual=names[counts["actual"]], predicted=names[counts["predicted"]])
    return named.assign(arm=arm)[["arm", "actual", "predicted", "count"]]


def classifier_losses(trained: Mapping[str, Sequence[StoredClassifier]]) -> pd.DataFrame:
    """Training loss of every arm, mean over seeds; learners without a curve have no rows."""
    points = [
        {"step": step, "arm": arm, "loss": loss}
        for arm, of_arm in trained.items()
        for stored in of_arm
        for step, loss in stored.curve
    ]
    table = pd.DataFrame(points, columns=["step", "arm", "loss"])
    mean = table.groupby(["step", "arm"], sort=False)["loss"].mean().round(5)
    return mean.reset_index()


def learned_losses(names: Iterable[str]) -> pd.DataFrame:
    """Denoising losses of everything that was learned: learned, kind (training or heldout), step, loss."""
    empty = pd.DataFrame(columns=["learned", "kind", "step", "loss"])
    curves = [pd.read_csv(Path(CURVES) / f"{name}.csv").assign(learned=name) for name in names]
    return pd.concat(curves or [empty])[list(empty.columns)]


def heldout_losses(learned: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The first and the last loss on fixed draws that are never trained on."""
    heldout = learned[learned["kind"] == "heldout"]
    return {
        str(name): {"first": round(rows["loss"].iloc[0], 5), "last": round(rows["loss"].iloc[-1], 5)}
        for name, rows in heldout.groupby("learned", sort=False)
    }


def grid_rows(names: Iterable[str]) -> list[tuple[str, Images]]:
    """The first real image of each class, then the preview rows of every image set that was made.

    The first row of a set has its name in a line of its own: two strategies may have rows of one name.
    """
    real = ImageSetReader(Path(REAL))
    firsts = [int(np.flatnonzero(real.labels == k)[0]) for k in np.unique(real.labels)][:GRID_COLUMNS]
    rows = [("real", real.take(firsts).images)]
    for name in names:
        preview = load_image_set(Path(PREVIEWS) / name)
        labels = np.asarray(preview.provenance["row"], dtype=object)
        order = np.argsort(preview.labels, kind="stable")
        for row, label in enumerate(dict.fromkeys(labels)):
            text = f"{label}" if row else f"{name}:\n{label}"
            rows.append((text, preview.images[[i for i in order if labels[i] == label]]))
    return rows


if __name__ == "__main__":
    run("evaluate", main)
