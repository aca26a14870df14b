"""The estimate: what is counted is what a run does, every stage has a row, and no time is asserted."""

import inspect
import json
import os
from dataclasses import replace

import pytest
import test_clip_learners as clips
import test_methods_gan as gans
import tiny
import tiny_methods as methods
import torch
from PIL import Image
from tiny_methods import save_clip

from dinv.classify.arms import Arm
from dinv.classify.clip_based import ClipParams
from dinv.classify.ensemble import EnsembleParams
from dinv.classify.probe import ProbeParams
from dinv.classify.registry import LEARNERS
from dinv.classify.training import TrainingParams
from dinv.errors import UserError
from dinv.estimate import classifiers, image_sets, run, stages
from dinv.estimate.classifiers import grown, train_cost
from dinv.estimate.image_sets import generate_cost, latents_cost, part_bytes
from dinv.estimate.measure import Clock, Range, fitting_size, peak_memory
from dinv.estimate.report import as_json, duration, size, table
from dinv.estimate.run import estimate, inputs_of, unfinished, with_followers
from dinv.estimate.sample import Sample, in_turns
from dinv.estimate.stages import invert_cost, plain_visits
from dinv.execution.expected import expected
from dinv.inversion.class_embeddings import ClassEmbeddingsParams
from dinv.inversion.gan import GanParams
from dinv.inversion.invert import ImageEmbeddingsParams
from dinv.inversion.joint_training import ClassLoraParams
from dinv.inversion.registry import METHODS
from dinv.params import load_params, parse_params, read_yaml
from dinv.strategies.registry import STRATEGIES

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


@pytest.fixture(scope="module")
def sample(tmp_path_factory, grey_model_folder):
    """Of a tiny task with 30 training images of ten classes; no DVC, nothing has run."""
    root = tmp_path_factory.mktemp("estimate")
    tiny.save_tiny_fashion_mnist(root / "tinydata", per_class=3)
    raw = read_yaml(tiny.ROOT / "params.yaml")
    raw["data"] |= {
        "root": str(root / "tinydata"),
        "resolution": 16,
        "num_per_class": None,
        "num_val_per_class": 0,
    }
    raw["model"] |= {"path": str(grey_model_folder), "resolution": 16}
    params = parse_params(raw)
    learned = {
        "gan": GanParams.model_validate(gans.BLOCK),
        "classes": ClassEmbeddingsParams(
            **{**params.invert["embeddings"].model_dump(), "method": "class_embeddings", "num_visits": 9},
            batch_size=4,
        ),
    }
    adapter = {"method": "class_lora", "rank": 2, "alpha": 2.0, "adapter_lr": 1e-3}
    learned["lora"] = ClassLoraParams(**{**learned["classes"].model_dump(), **adapter})
    with run.scratch_in(root):
        yield Sample.of(params.model_copy(update={"invert": learned}), root / "sample")


def block(name, place, **update):
    return STRATEGIES[name].Params(strategy=name, input=place, **update)


def test_gan_inversion_is_its_latents_and_its_images(sample, monkeypatch):
    params = block("gan_inversion", "data/learned/gan", **gans.BLOCKS["gan_inversion"])
    cost = generate_cost(params, sample)
    assert cost.work == {"images": 2 * 30, "UNet passes": 0} and cost.note == "" and cost.disk > 0
    seen = iter([9.0, 2.0, 5.0])  # three steps take 3 s: one a second, and 1 s besides
    monkeypatch.setattr(image_sets, "timed", lambda work, device: next(seen))
    seconds, few = latents_cost(params.model_copy(update={"num_inversion_steps": 100}), sample)
    assert seconds == Range(100, 100, 100) and few.num_inversion_steps == 1


def test_an_imported_folder_is_counted_as_it_lies_there(sample, tmp_path):
    plain = {"resize": "squash", "max_duplicate_bits": None}
    for i, name in enumerate(("a/1.png", "a/deep/2.png", "b/3.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiny.random_images(1, side=20, seed=i)[0]).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("path,label\n")
    cost = generate_cost(block("import_folder", str(tmp_path), **plain), sample)
    assert cost.work == {"images": 3} and 0 < cost.seconds.low <= cost.seconds.high and cost.disk > 0
    empty = tmp_path / "empty"
    empty.mkdir()
    for place, words in ((tmp_path / "none", "no such folder"), (empty, "no image; put some there")):
        with pytest.raises(UserError, match=words):
            generate_cost(block("import_folder", str(place), **plain), sample)


def test_embeddings_of_classes_and_banks_of_prompts(sample):
    classes = sample.params.invert["classes"]
    assert invert_cost(classes, sample).work == {"image visits": 10 * 9 * 4}
    made = tiny.PARAMS.generate["inversion"].model_dump()
    made |= {"input": "data/learned/classes", "interpolation": 0.0, "num_images_per_embedding": 3}
    few = replace(sample, params=sample.params)  # two images of each class are timed, 30 are there
    few.__dict__["rows"] = sample.rows[:20]
    cost = generate_cost(STRATEGIES["diffusion_inversion"].Params(**made), few)
    assert cost.note == "" and cost.work["images"] == 3 * 10
    prompts = {"prefix": "a photo of", "num_prompts": 5, "language_model": None, "num_samples": 1, "seed": 0}
    bank = METHODS["prompt_bank"].Params(method="prompt_bank", **prompts)
    cost = invert_cost(bank, sample)
    assert cost.work == {"classes": 10} and cost.disk > 10 * 5 * len("a photo of")


def test_a_lora_is_learned_and_the_unets_passes_with_it_are_counted(sample):
    pytest.importorskip("peft")
    cost = invert_cost(sample.params.invert["lora"], sample)
    assert cost.work == {"image visits": 9 * 4} and cost.disk > 0 and cost.seconds.low > 0
    made = {**methods.EDIT, "prompt": None, "strengths": [1.0]}
    costs = [
        generate_cost(block("image_to_image", f"data/learned/{name}", **made), sample)
        for name in ("classes", "lora")
    ]
    assert costs[0].work == costs[1].work == {"images": 2 * 30, "UNet passes": 2 * 30 * 4 * 2}


@pytest.mark.parametrize(
    ("name", "real", "mixed"),
    [
        ("zero_shot_clip", {}, {}),
        ("tip_adapter", {"images to have features of": 60}, {"images to have features of": 260}),
        (
            "coop",
            {"images to have features of": 60, "classifier steps": 6},
            {"images to have features of": 260, "classifier steps": 6},
        ),
        (
            "tip_adapter_f",  # trained once, and once for each of five folds
            {"images to have features of": 60, "classifier steps": 36},
            {"images to have features of": 260, "classifier steps": 36},
        ),
    ],
)
def test_learners_on_clip_read_every_view_and_take_their_steps(
    sample, tmp_path, monkeypatch, name, real, mixed
):
    """Two views of 30 real images, and of 100 generated ones."""
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / clips.PATH)
    params = clips.params(name)
    for arm, num_made, work in (
        (Arm(images="data/real/train", real=False, learner="x"), 0, real),
        (Arm(images="data/generated/a", real=True, learner="x"), 100, mixed),
    ):
        cost = train_cost(arm, num_made, replace(sample, params=with_learner(sample.params, params)))
        assert cost.work == work and cost.note == "" and cost.disk > 0
        assert 0 < cost.seconds.low <= cost.seconds.median <= cost.seconds.high and cost.look.median > 0


def test_an_ensemble_costs_what_its_members_do(sample):
    cnn = sample.params.train["cnn"].model_copy(update={"num_steps": 6, "seeds": [0]})
    params = EnsembleParams(learner="ensemble", members=[cnn, cnn], seeds=[0, 1], min_confidence=0.0)
    arm = Arm(images="data/generated/a", real=True, learner="x")
    once, taught = (
        train_cost(arm, 100, replace(sample, params=with_learner(sample.params, p)))
        for p in (params, params.model_copy(update={"soft_labels": "teacher"}))
    )
    assert once.work == {"classifier steps": 24} and taught.work == {"classifier steps": 48}
    assert once.note == "" and once.disk > 0 and once.seconds.median > 0 and once.look.median > 0


def with_learner(params, learner):
    return params.model_copy(update={"train": {"x": learner}})


def test_every_method_strategy_and_learner_is_known():
    """Or its note says why it is not: retrieval alone, and nothing else, cannot be estimated."""
    words = "".join(inspect.getsource(m) for m in (image_sets, run, stages, classifiers))
    assert words.count("not known to dinv estimate") == 3  # a method, an input, a learner of someone's own
    for name in METHODS:
        known = (ImageEmbeddingsParams, GanParams)
        assert issubclass(METHODS[name].Params, known) or f'"{name}"' in words, name
    for name in LEARNERS:
        known_params = (TrainingParams, ProbeParams, ClipParams, EnsembleParams)
        assert issubclass(LEARNERS[name].Params, known_params), name


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


def test_stages_will_say_the_numbers_of_the_table(found, monkeypatch, tmp_path, capsys):
    result, params = found
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    for name, value in (("load_params", params), ("start_seconds", 1.5), ("unfinished", None)):
        monkeypatch.setattr(run, name, lambda value=value: value)
    monkeypatch.setattr(run, "estimate", lambda *arguments: result)
    run.run_estimate(None, True)
    printed = capsys.readouterr().out
    for row in result.rows:
        time, disk = expected(params.model_dump(), row.stage).removesuffix(" on the disk").split(", ")
        assert f"| {time} | {disk} |" in printed, row.stage
