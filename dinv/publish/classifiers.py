"""An arm's trained classifiers as a folder with a model card."""

import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from dinv.classify.arms import REAL
from dinv.classify.store import StoredClassifier, load_classifiers
from dinv.errors import UserError
from dinv.files import part_paths, write_json
from dinv.images.reader import ImageSetReader
from dinv.publish import cards
from dinv.publish.image_sets import origins_of, settings_section
from dinv.publish.origin import Origin
from dinv.publish.record import Record, changes, record_of

ACCURACY = Path("metrics/accuracy.csv")
LOAD = """\
from pathlib import Path
import torch
from dinv.classify.store import load_classifier

classifier = load_classifier(Path("{file}"))
images = torch.zeros(1, {channels}, {side}, {side}, dtype=torch.uint8)  # pixels 0 to 255
probabilities = classifier.predict_proba(images, torch.device("cpu"))  # float32 [1, {classes}]
"""


@dataclass(frozen=True)
class ClassifierExport:
    """What is written about an arm's classifiers.

    Attributes:
        source: data/classifiers/<arm>.
        stored: one classifier per seed.
        real: the real training images, for names of classes and the form of an image.
        record: how they were trained, if dvc.lock says so.
        stated: the licence that the user states, None: none.
    """

    source: Path
    stored: list[StoredClassifier]
    real: ImageSetReader
    record: Record | None
    stated: str | None

    @classmethod
    def of(cls, source: Path, stated: str | None) -> "ClassifierExport":
        """Raises UserError where files are missing or damaged, or not what dvc.lock records."""
        return cls(source, load_classifiers(source), ImageSetReader(Path(REAL)), record_of(source), stated)

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.source.name

    @property
    def origins(self) -> dict[str, Origin]:
        """The real images, and the generator where generated images were learned from."""
        images = {} if self.record is None else dict(self.record.section(f"arms.{self.arm}"))
        return origins_of(self.record, real=images.get("images") == REAL)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The arm's rows of metrics/accuracy.csv; empty if nothing was evaluated.

        Raises:
            UserError: they are of other classifiers.
        """
        rows = scores_of(self.arm) if self.record is not None else pd.DataFrame()
        if len(rows) and set(rows["seed"]) != {c.seed for c in self.stored}:
            raise UserError(
                f"{ACCURACY}: has other seeds of arm {self.arm} than {self.source}; run dvc repro"
            )
        return rows

    def write(self, target: Path) -> int:
        """Write weights, config.json, licence texts and the card; returns the number of classifiers."""
        for path, classifier in zip(
            part_paths(self.source, ".safetensors", "classifiers"), self.stored, strict=True
        ):
            shutil.copyfile(path, target / file_name(classifier))
        write_json(target / "config.json", self.config())
        origins = self.origins
        cards.copy_notices(origins, target)
        cards.write_card(self._metadata(origins), self._sections(origins), target)
        return len(self.stored)

    def config(self) -> dict[str, Any]:
        """What a program needs besides the weights."""
        height, width, channels = self.real.shape
        return {
            "arm": self.arm,
            "class_names": self.real.class_names,
            "image": {"channels": channels, "height": height, "width": width, "pixels": "uint8, 0 to 255"},
            "normalization": normalization(self.stored[0]),
            "learner": self.stored[0].learner,
            "build": self.stored[0].fitted.build,
            "files": [file_name(c) for c in self.stored],
        }

    def _metadata(self, origins: Mapping[str, Origin]) -> ModelCardData:
        return ModelCardData(
            **cards.licence_fields(self.stated, list(origins.values())),
            library_name="dinv",
            pipeline_tag="image-classification",
            tags=["image-classification", "dinv", *(["synthetic"] if "generator" in origins else [])],
            model_name=self.arm,
            eval_results=self._results(),
        )

    def _results(self) -> list[EvalResult] | None:
        """Test accuracy, mean over seeds, as the hub's model index has it."""
        if not len(self.scores):
            return None
        test = self.scores[self.scores["split"] == "test"]
        data = self._data()
        return [
            EvalResult(
                task_type="image-classification",
                dataset_type=str(data.get("source", "images")),
                dataset_name=str(data.get("root", "images")),
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"top-1 accuracy, mean of {len(test)} seeds",
                metric_value=round(float(test["top1_accuracy"].mean()) / 100, 6),
            )
        ]

    def _data(self) -> Mapping[str, Any]:
        record = record_of(Path(REAL))
        return {} if record is None else record.section("data")

    def _sections(self, origins: Mapping[str, Origin]) -> list[str]:
        first, names = self.stored[0], self.real.class_names
        side, _, channels = self.real.shape
        load = LOAD.format(file=file_name(first), channels=channels, side=side, classes=len(names))
        about = (
            f"Image classifiers of arm `{self.arm}`, learner `{first.learner}`, trained by dinv "
            f"({cards.PAPER}) on {first.num_images} images: one for each of {len(self.stored)} seeds."
        )
        return [
            f"# {self.arm}",
            about + _needs(first),
            f"## Load\n\nIn this folder, with dinv installed:\n\n```python\n{load}```",
            f"## Images\n\n{self._images()}",
            "## Classes\n\n" + cards.table(("index", "class"), list(enumerate(names))),
            f"## Accuracy\n\n{self._accuracy()}",
            settings_section(self.record),
            cards.licence_section(self.stated, origins),
        ]

    def _images(self) -> str:
        height, width, channels = self.real.shape
        resize, norm = self._data().get("resize"), normalization(self.stored[0])
        words = [f"{width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}, uint8 from 0 to 255."]
        if resize:
            words.append(f"Training images were brought to this size by `{resize}` (`dinv.images.resize`).")
        if norm:
            mean, std = norm["mean"], norm["std"]
            words.append(f"The classifier itself divides by 255, subtracts {mean} and divides by {std}.")
        return " ".join(words)

    def _accuracy(self) -> str:
        if not len(self.scores):
            return "Not measured."
        columns = ["seed", "split", "top1_accuracy", "balanced_accuracy", "expected_calibration_error"]
        test = self.scores[self.scores["split"] == "test"]["top1_accuracy"]
        spread = f" ± {test.std():.2f} (standard deviation)" if len(test) > 1 else ""
        mean = f"Top-1 accuracy on test images, mean of {len(test)} seeds: {test.mean():.2f} %{spread}."
        rows = self.scores[columns].itertuples(index=False)
        return f"{mean} Each, in percent:\n\n" + cards.table(columns, rows)


def _needs(classifier: StoredClassifier) -> str:
    """The network whose features a probe reads, which does not come along."""
    features = classifier.fitted.build.get("features")
    if features is None:
        return ""
    return (
        f" They read features of network `{features['network']}`, which they expect at `{features['path']}`."
    )


def file_name(classifier: StoredClassifier) -> str:
    """seed-0.safetensors, ..."""
    return f"seed-{classifier.seed}.safetensors"


def normalization(classifier: StoredClassifier) -> dict[str, list[float]] | None:
    """Mean and std per channel of pixels in [0, 1], which networks keep with their weights; None: others."""
    tensors = classifier.fitted.tensors
    if "features" in classifier.fitted.build or not {"mean", "std"} <= tensors.keys():
        return None
    return {name: [round(x, 6) for x in tensors[name].flatten().tolist()] for name in ("mean", "std")}


def scores_of(arm: str) -> pd.DataFrame:
    """Rows of metrics/accuracy.csv of one arm.

    Raises:
        UserError: the file is older than the classifiers.
    """
    if not ACCURACY.is_file():
        return pd.DataFrame()
    outdated = {ACCURACY.as_posix(), "data/classifiers"}
    if outdated & {*changes("evaluate", "changed outs"), *changes("evaluate", "changed deps")}:
        raise UserError(f"{ACCURACY}: not of the classifiers that are there; run dvc repro evaluate")
    table = pd.read_csv(io.StringIO(ACCURACY.read_text()))
    return table[table["arm"] == arm].drop(columns="arm")
