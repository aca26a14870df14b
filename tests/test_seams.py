"""A new strategy, learner and arm: one file and one line each, and the pipeline runs them."""

import csv
import json

import project as projects
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

STRATEGY = '''
"""Copies of real images under the next class's label, with a doubt; no diffusion model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from dinv.section import PositiveInt
from dinv.strategies.base import Draw, StrategyParams


class CopiesParams(StrategyParams):
    copies: PositiveInt


@dataclass(frozen=True)
class Copy:
    uses_model: ClassVar[bool] = False

    def open(self, open_model):
        return lambda inputs: inputs["images"]


class Copies:
    Params = CopiesParams

    def __init__(self, params, material):
        self.params, self.real = params, material.real

    def __len__(self):
        return self.params.copies * len(self.real)

    def draws(self, indices):
        return [self._draw(*divmod(i, len(self.real))) for i in indices]

    def _draw(self, copy, row):
        label = (int(self.real.labels[row]) + 1) % 10
        probabilities = [0.75 if k == label else 0.25 / 9 for k in range(10)]
        return Draw(f"{row}-{copy}", label, self.real.ids[row], {"copy": copy}, tuple(probabilities))

    def inputs(self, draws):
        rows = [self.real.ids.index(draw.source_id) for draw in draws]
        return {"images": torch.from_numpy(self.real.take(rows).images)}

    def renderer(self):
        return Copy()

    def previews(self):
        return [("copies", self)]
'''

LEARNER = '''
"""The class whose mean image is nearest."""

import torch

from dinv.classify.base import Fitted, LearnerParams
from dinv.section import PositiveFloat


class NearestMeanParams(LearnerParams):
    sharpness: PositiveFloat


class NearestMean:
    Params = NearestMeanParams

    @staticmethod
    def settings(params, mixes, device):
        return {"sharpness": params.sharpness}

    @staticmethod
    def num_units(params):
        return 1

    @staticmethod
    def fit(data, params, seed, device, advance):
        images = torch.cat([s.images.flatten(1).float() for s in data.sources])
        targets = torch.cat([s.targets for s in data.sources])
        advance(1)
        means = targets.T @ images / targets.sum(0)[:, None]
        return Fitted({"means": means}, {"sharpness": params.sharpness}, [])

    @staticmethod
    def load(tensors, build, device):
        means = tensors["means"].to(device)
        return lambda x: (-torch.cdist(x.flatten(1).float(), means) * build["sharpness"]).softmax(1)
'''


def add_line(path, after, line):
    """Add a line below the one that, but for its indentation, says `after`."""
    lines = path.read_text().splitlines(keepends=True)
    (place,) = [i for i, text in enumerate(lines) if text.strip() == after]
    lines.insert(place + 1, f"{line}\n")
    path.write_text("".join(lines))


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """A project with three additions, after `dvc repro`, and what that printed."""
    project = finished.copy(tmp_path_factory.mktemp("seams") / "copy")
    root = project.root
    (root / "dinv/strategies/copies.py").write_text(STRATEGY)
    (root / "dinv/classify/nearest_mean.py").write_text(LEARNER)
    strategies, learners = root / "dinv/strategies/registry.py", root / "dinv/classify/registry.py"
    add_line(
        strategies,
        '"reconstruction": "dinv.strategies.reconstruction:Reconstruction",',
        '        "copies": "dinv.strategies.copies:Copies",',
    )
    add_line(
        learners,
        '"cnn": "dinv.classify.cnn:Cnn",',
        '        "nearest": "dinv.classify.nearest_mean:NearestMean",',
    )
    params = root / "params.yaml"
    add_line(params, "arms:", "  copied: {images: data/generated/copies, real: true, learner: simple}")
    add_line(params, "arms:", "  plain: {images: data/real/train, real: false, learner: simple}")
    add_line(params, "generate:", "  copies: {strategy: copies, input: data/real/train, copies: 2}")
    add_line(
        params, "train:", "  simple: {learner: nearest, sharpness: 0.1, min_confidence: 0.0, seeds: [0]}"
    )
    return project, project.dvc("repro", "--no-run-cache").stdout


def test_the_pipeline_runs_them_and_shows_them_everywhere(extended):
    project, out = extended
    for stage in ("generate@copies", "train@copied", "train@plain"):
        assert f"Running stage '{stage}'" in out
    metrics = project.root / "metrics"
    summary = json.loads((metrics / "summary.json").read_text())
    assert {"copied", "plain", *projects.ARMS} == set(summary["top1_accuracy"])
    assert "| copied | 90 |" in (metrics / "table.md").read_text()
    measured = csv.DictReader((metrics / "image_sets/domain.csv").open())
    assert {"copies", "inversion"} <= {row["images"] for row in measured}
    assert "up to date" in project.dvc("status").stdout


def test_what_was_finished_of_other_methods_is_not_computed_again(extended):
    _, out = extended
    assert out.count("1 of 1 parts are already finished") >= 2  # images of the two other strategies
    assert out.count("2 of 2 parts are already finished") == 4  # classifiers of the four other arms


def test_gains_are_over_the_same_learner_on_real_images(extended):
    project, _ = extended
    summary = json.loads((project.root / "metrics/summary.json").read_text())
    accuracy, gains = summary["top1_accuracy"], summary["gain_over_real"]
    assert gains["copied"]["mean"] == pytest.approx(accuracy["copied"] - accuracy["plain"], abs=0.01)
    assert gains["mixed"]["mean"] == pytest.approx(accuracy["mixed"] - accuracy["real"], abs=0.01)


def test_another_label_and_class_probabilities_reach_the_classifier(extended):
    """Two wrongly labelled copies of each image against one right one: a confused classifier."""
    project, _ = extended
    table = pq.read_table(project.root / "data/generated/copies")
    assert {len(p) for p in table["probabilities"].to_pylist()} == {10}
    accuracy = json.loads((project.root / "metrics/summary.json").read_text())["top1_accuracy"]
    assert accuracy["plain"] > 90 and accuracy["copied"] < accuracy["plain"] - 20


def test_a_method_without_a_model_does_not_depend_on_it(extended, tmp_path):
    """Another model: the copies' finished parts are used again."""
    project = extended[0].copy(tmp_path / "copy")
    config = project.root / "models/fashion-ldm/scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.011"))
    project.dvc("repro", "download")
    done = project.stage("generate", "copies", ok=True)
    assert "1 of 1 parts are already finished" in done.stdout + done.stderr
