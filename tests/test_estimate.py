"""The estimate: what is counted is what a run does, every stage has a row, and no time is asserted."""

import json
import os

import pytest
import tiny
import torch

from dinv.estimate import run
from dinv.estimate.classifiers import grown
from dinv.estimate.measure import Clock, Range, fitting_size, peak_memory
from dinv.estimate.report import as_json, duration, size, table
from dinv.estimate.run import estimate, inputs_of, unfinished, with_followers
from dinv.estimate.sample import in_turns
from dinv.estimate.stages import part_bytes, plain_visits
from dinv.params import load_params, parse_params, read_yaml

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found(finished, tmp_path_factory):
    """The estimate of the finished project, and its params."""
    before = os.getcwd()
    os.chdir(finished.root)
    try:
        params = load_params()
        yield estimate(params, start=1.5, to_run={"train@real"}, price_per_hour=36.0), params
    finally:
        os.chdir(before)


def rows_of(result):
    return {row.stage: row for row in result.rows}


def test_every_stage_has_a_row_and_every_row_a_time(found, finished):
    result, params = found
    assert [row.stage for row in result.rows] == list(inputs_of(params))
    for row in result.rows:
        assert row.cost.note == "" and 1.5 <= row.seconds.low <= row.seconds.median <= row.seconds.high
        assert row.cost.memory.process > 1e7


def test_work_is_counted_as_a_run_does_it(found):
    rows = rows_of(found[0])
    assert rows["invert@embeddings"].cost.work == {"image visits": 30 * 5}
    assert rows["generate@inversion"].cost.work == {"images": 60, "UNet passes": 60 * 3 * 2}
    assert rows["generate@reconstruction"].cost.work == {"images": 30, "UNet passes": 0}
    for arm in ("real", "mixed"):
        assert rows[f"train@{arm}"].cost.work == {"classifier steps": 2 * 20}
    assert rows["evaluate"].cost.work == {"images looked at": (20 + 60) * 2 * 4}
    assert rows["download"].cost.work == {"images": 30 + 20 + 60}


@pytest.mark.parametrize(
    ("stage", "folder", "tolerance"),
    [
        ("invert@embeddings", "data/learned/embeddings", 0.3),
        ("generate@inversion", "data/generated/inversion", 0.3),
        ("generate@reconstruction", "data/generated/reconstruction", 0.3),
        ("train@mixed", "data/classifiers/mixed", 0.1),
    ],
)
def test_bytes_on_the_disk_are_those_of_a_run(found, finished, stage, folder, tolerance):
    real = sum(path.stat().st_size for path in (finished.root / folder).glob("part-*"))
    assert rows_of(found[0])[stage].cost.disk == pytest.approx(real, rel=tolerance)


def test_finished_stages_and_prices(found):
    result, _ = found
    todo = [row.stage for row in result.rows if not row.finished]
    assert todo == ["train@real", "evaluate"]
    assert result.to_do.median == pytest.approx(
        sum(row.seconds.median for row in result.rows if not row.finished)
    )
    assert result.price(Range(100, 200, 300)) == Range(1, 2, 3)
    text = table(result)
    assert (
        "| generate@inversion (finished) | 60 images, 360 UNet passes |" in text and "| still to do |" in text
    )
    written = json.loads(json.dumps(as_json(result)))
    assert written["not_estimated"] == {} and written["stages"][0]["stage"] == "download"
    assert written["total"]["cost"]["median"] == pytest.approx(written["total"]["seconds"]["median"] / 100)


def test_twice_the_work_counts_twice(found, finished, monkeypatch):
    monkeypatch.chdir(finished.root)
    raw = read_yaml(finished.root / "params.yaml")
    raw["invert"]["embeddings"]["num_visits"] *= 2
    raw["generate"]["inversion"]["num_images_per_embedding"] *= 2
    raw["generate"]["inversion"]["guidance_scale"] = 1.0
    raw["train"]["cnn"]["num_steps"] *= 2
    rows, before = rows_of(estimate(parse_params(raw), 0.0, None)), rows_of(found[0])
    for stage, item, factor in (
        ("invert@embeddings", "image visits", 2),
        ("generate@inversion", "images", 2),
        ("generate@inversion", "UNet passes", 1),
        ("train@synthetic", "classifier steps", 2),
    ):
        assert rows[stage].cost.work[item] == factor * before[stage].cost.work[item]
    assert rows["generate@inversion"].cost.disk == pytest.approx(
        2 * before["generate@inversion"].cost.disk, rel=0.2
    )
    assert not any(row.finished for row in rows.values())


def test_what_cannot_be_estimated_is_named(found, finished, monkeypatch):
    monkeypatch.chdir(finished.root)
    raw = read_yaml(finished.root / "params.yaml")
    raw["measure"]["features"]["far"] = {"network": "clip", "path": "nowhere"}
    raw["train"]["cnn"]["pretrained"] = "nowhere.safetensors"
    result = estimate(parse_params(raw), 0.0, None)
    notes = as_json(result)["not_estimated"]
    assert set(notes) == {"measure@far", *(f"train@{arm}" for arm in raw["arms"])}
    assert "nowhere" in notes["measure@far"] and "| measure@far | not estimated: " in table(result)
    assert "Not in the sums: measure@far, train@real" in table(result)


def test_what_follows_from_an_unfinished_stage_is_unfinished():
    found = with_followers({"generate@inversion"}, tiny.PARAMS)
    assert found == {"generate@inversion", "measure@domain", "train@synthetic", "train@mixed", "evaluate"}
    assert with_followers({"download"}, tiny.PARAMS) == set(inputs_of(tiny.PARAMS))
    assert with_followers(set(), tiny.PARAMS) == set()


def test_dvc_says_what_is_unfinished(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.root)
    assert unfinished() == set()
    monkeypatch.chdir(tmp_path)
    assert unfinished() is None


def test_ranges_and_words():
    assert Range.of([3, 1, 2]) == Range(1, 2, 3) and Range(1, 2, 3) * 2 + Range(1, 1, 1) == Range(3, 5, 7)
    assert grown(1.0, 10, 20) == Range(2, 20**1.5 / 10**1.5, 4)
    assert fitting_size(0.1, 100, 5) == 50 and fitting_size(9, 100, 5) == 1 and fitting_size(0, 7, 5) == 7
    assert (
        duration(Range(30, 90, 120)) == "1.5 min (0.5 to 2.0)"
        and duration(Range(0, 0, 0)) == "0.0 s (0.0 to 0.0)"
    )
    assert size(1500) == "1.5 kB" and size(2_000_000) == "2.0 MB"
    assert in_turns(torch.tensor([0, 0, 1, 2, 0, 1]).numpy()).tolist() == [0, 2, 3, 1, 5, 4]
    assert plain_visits([9, 1, 2, 9, 3, 4, 9], 7) == Range(1, 2.5, 4) and plain_visits([5], 1) == Range(
        5, 5, 5
    )


def test_the_head_of_a_part_is_counted_once_per_part():
    assert part_bytes(1010, [bytes(1050)] * 3, 5, num_images=100, num_parts=2) == 100 * 10 + 2 * 1000


def test_memory_at_its_most_is_seen_and_units_are_counted():
    with peak_memory(CPU) as memory:
        held = torch.ones(50_000_000)
        clock = Clock(CPU)
        clock.advance(3)
        clock.advance(4)
    assert memory.process > 2e8 and memory.gpu == 0 and len(held)
    assert clock.units == 7 and len(clock.steps) == 2


def test_a_wrong_price_is_refused(monkeypatch):
    monkeypatch.setattr(run, "estimate", None)
    with pytest.raises(run.UserError, match=r"--price-per-hour -1\.0: must not be negative"):
        run.run_estimate(-1.0, True)
