"""How real and generated images are mixed: shares over training, partners; the defaults change nothing."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from test_classify import batches_of, easy_images, fit, numbered, weights
from test_config import RAW
from test_probe import fit as fit_probe
from torchvision.transforms import v2

from dinv.classify.arms import Arm
from dinv.classify.augment import augment, mix
from dinv.classify.batches import batch_sizes, real_share
from dinv.classify.choice import Choice, best_share, report
from dinv.classify.cnn import CnnParams
from dinv.classify.run import Trainer
from dinv.errors import UserError
from dinv.experiments.spec import changed
from dinv.images.image_set import ImageSet, save_image_set
from dinv.params import parse_params
from dinv.tuning.spec import Tuning, check


def both():
    """Six real images 0 to 5, and two generated from each: 100 + i and 106 + i."""
    return [numbered(6, 0), numbered(12, 100, origins=torch.arange(12) % 6)]


def num_real(batches):
    return [int((b.images[:, 0, 0, 0] < 100).sum()) for b in batches]


def test_by_default_batches_are_those_of_a_loop_that_knows_no_schedule():
    """The draws of before: an order of each source per epoch, then an order of the batch."""
    real, made = sources = both()
    g = torch.Generator().manual_seed(0)
    pending = [torch.empty(0, dtype=torch.int64)] * 2
    for batch in batches_of(sources, 20, batch_size=8, real_fraction=0.25, synthetic_loss_weight=0.5):
        rows = []
        for i, (source, count) in enumerate(((real, 2), (made, 6))):
            while len(pending[i]) < count:
                pending[i] = torch.cat([pending[i], torch.randperm(len(source), generator=g)])
            rows.append(pending[i][:count])
            pending[i] = pending[i][count:]
        order = torch.randperm(8, generator=g)
        assert torch.equal(batch.images, torch.cat([real.images[rows[0]], made.images[rows[1]]])[order])
        targets = torch.cat([real.targets[rows[0]], 0.5 * made.targets[rows[1]]])[order]
        assert torch.equal(batch.targets, targets)


def test_the_default_replaces_with_the_same_draws_as_before():
    real, made = sources = both()
    g = torch.Generator().manual_seed(0)
    pending = torch.empty(0, dtype=torch.int64)
    for batch in batches_of(sources, 20, mixing="replace", batch_size=4, real_fraction=0.25):
        while len(pending) < 4:
            pending = torch.cat([pending, torch.randperm(6, generator=g)])
        rows, pending = pending[:4], pending[4:]
        replaced = torch.rand(4, generator=g) >= 0.25
        chosen = rows + 6 * (torch.rand(4, generator=g) * 2).long()
        expected = torch.where(replaced.view(-1, 1, 1, 1), made.images[chosen], real.images[rows])
        assert torch.equal(batch.images, expected)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(2, 50))
def test_schedules_begin_and_end_where_they_should(start, end, num_steps):
    for kind in ("linear", "cosine"):
        params = tiny.train_params(
            real_fraction=start, real_fraction_end=end, real_fraction_schedule=kind, num_steps=num_steps
        )
        shares = [real_share(params, step) for step in range(num_steps)]
        assert shares[0] == pytest.approx(start) and shares[-1] == pytest.approx(end)
        falls = np.diff(shares) * (1 if end >= start else -1)
        assert (falls >= -1e-9).all()


def test_schedules_known_answers():
    """Five steps: p = 0, 1/4, 1/2, 3/4, 1."""
    update = {"real_fraction": 0.0, "real_fraction_end": 1.0, "num_steps": 5}
    linear = tiny.train_params(**update, real_fraction_schedule="linear")
    assert [real_share(linear, s) for s in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    cosine = tiny.train_params(**update, real_fraction_schedule="cosine")
    expected = [0, (1 - 0.5**0.5) / 2, 0.5, (1 + 0.5**0.5) / 2, 1]
    assert [real_share(cosine, s) for s in range(5)] == pytest.approx(expected)


def test_the_last_steps_can_be_on_real_images_only():
    """A quarter of 12 steps: the schedule is over before it."""
    update = {"num_steps": 12, "finish_on_real": 0.25, "real_fraction_end": 0.75}
    linear = tiny.train_params(real_fraction=0.25, real_fraction_schedule="linear", **update)
    shares = [real_share(linear, s) for s in range(12)]
    assert shares[:9] == pytest.approx([0.25 + 0.5 * s / 8 for s in range(9)]) and shares[9:] == [1, 1, 1]
    for mixing in ("batch", "replace"):
        found = batches_of(both(), 12, mixing=mixing, real_fraction=0.0, num_steps=12, finish_on_real=0.25)
        assert num_real(found) == [0] * 9 + [8] * 3


def test_batches_follow_the_schedule():
    update = {"real_fraction": 0.0, "real_fraction_end": 1.0, "real_fraction_schedule": "linear"}
    found = batches_of(both(), 9, num_steps=9, batch_size=8, **update)
    assert num_real(found) == list(range(9))
    found = batches_of(both(), 200, num_steps=200, batch_size=8, mixing="replace", **update)
    assert np.mean(num_real(found[:50])) == pytest.approx(1, abs=0.4)
    assert np.mean(num_real(found[150:])) == pytest.approx(7, abs=0.4)


def test_only_the_shares_0_and_1_leave_one_kind_out():
    def sizes(share):
        return batch_sizes(tiny.train_params(batch_size=8, real_fraction=share), 2)

    assert [sizes(f) for f in (0.0, 0.01, 0.99, 1.0)] == [[0, 8], [1, 7], [7, 1], [8, 0]]


@pytest.mark.parametrize("mixing", ["batch", "replace"])
def test_a_share_of_1_is_the_classifier_of_real_images_to_the_bit(mixing):
    real = easy_images()
    made = easy_images(seed=1)
    mixed = fit(
        [real, type(made)(made.images, made.targets, torch.arange(60))], real_fraction=1.0, mixing=mixing
    )
    alone = fit([real])
    assert all(torch.equal(value, weights(mixed)[name]) for name, value in weights(alone).items())


@pytest.mark.parametrize(("share", "alone"), [(1.0, 0), (0.0, 1)])
def test_a_probe_with_a_share_of_0_or_1_learns_one_kind_alone(share, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path))
    sources = [easy_images(n=30), easy_images(n=60, seed=1)]
    found, expected = fit_probe(*sources, real_fraction=share), fit_probe(sources[alone])
    assert all(torch.equal(v, weights(found)[name]) for name, v in weights(expected).items())
    assert len(weights(fit_probe(*sources))["dual"][0]) != len(weights(expected)["dual"][0])


@pytest.mark.parametrize(
    "update",
    [
        {"real_fraction_schedule": "linear"},
        {"real_fraction_schedule": "cosine", "real_fraction_end": 0.25},
        {"finish_on_real": 0.5},
        {"real_fraction": 0.0},
    ],
)
def test_each_schedule_trains_reproducibly_and_is_not_ignored(update):
    made = easy_images(seed=1)
    sources = [easy_images(), type(made)(made.images, made.targets, torch.arange(60))]
    first, again, without = fit(sources, **update), fit(sources, **update), fit(sources)
    key = "body.0.weight"
    assert torch.equal(weights(first)[key], weights(again)[key])
    assert not torch.equal(weights(first)[key], weights(without)[key])


def test_a_share_is_chosen_by_accuracy_and_more_real_images_win_a_tie():
    scores = {0.25: [50.0, 70.0], 0.5: [65.0, 60.0], 1.0: [60.0, 60.0]}
    assert best_share(scores, 0) == 0.5
    assert best_share({0.25: [60.0, 60.0], 1.0: [70.0, 50.0], 0.5: [50.0, 70.0]}, 0) == 1.0
    assert (
        report(scores, 0.5)
        == "real_fraction by cross-validation: 0.25: 60.00, 0.5: 62.50, 1: 60.00; 0.5 is chosen"
    )


@pytest.mark.parametrize(("errors", "share"), [(0, 0.25), (1.4, 0.25), (1.6, 1.0)])
def test_a_smaller_share_must_be_better_by_so_many_standard_errors(errors, share):
    """0.25 is ahead of 1 by 1, 3 and 14, 1.48 standard errors, and of 0.5 by 2, 4 and 6, 3.46 of these."""
    scores = {1.0: [61.0, 61.0, 52.0], 0.25: [62.0, 64.0, 66.0], 0.5: [60.0, 60.0, 60.0]}
    assert best_share(scores, errors) == share
    assert best_share({**scores, 1.0: [50.0, 50.0, 50.0]}, 2 + errors) == (0.5 if errors > 1.46 else 0.25)


def save(folder, values, labels, **provenance):
    images = np.asarray(values, np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    ids = [f"{folder.name}-{i}" for i in range(len(values))]
    save_image_set(ImageSet(images, np.asarray(labels), ids, ["a", "b"], provenance), folder)


@pytest.fixture
def task(tmp_path, monkeypatch):
    """12 real images of two classes; of each two generated ones that show the other class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "scratch"))
    labels = [i % 2 for i in range(12)]
    save(tmp_path / "data/real/train", [40 + 120 * k + i for i, k in enumerate(labels)], labels)
    sources = {"source_id": [f"train-{i}" for i in range(12)] * 2}
    save(tmp_path / "data/generated/bad", [45 + 120 * (1 - k) for k in labels * 2], labels * 2, **sources)
    return Arm(images="data/generated/bad", real=True, learner="cnn")


def trained(arm, output, **update):
    small = {"num_steps": 20, "seeds": [0], "real_fraction": 0.1, "choose_real_folds": 2}
    params = tiny.train_params(**{**small, "choose_real_from": [0.1, 1.0], **update})
    Trainer(params, tiny.PARAMS.execution, torch.device("cpu"), "code").train("mixed", arm, output)
    return (output / "part-00000.safetensors").read_bytes()


def test_where_generated_images_mislead_none_are_chosen(task, tmp_path, capfd):
    alone = trained(Arm(images="data/real/train", real=False, learner="cnn"), tmp_path / "real")
    assert not (tmp_path / "real/real_fraction.json").exists()
    chosen = trained(task, tmp_path / "chosen", choose_real="cross_validation")
    found = json.loads((tmp_path / "chosen/real_fraction.json").read_text())
    assert found["chosen"] == 1.0 and all(len(v) == 2 for v in found["accuracy"].values())
    assert np.mean(found["accuracy"]["1.0"]) > np.mean(found["accuracy"]["0.1"])
    assert chosen == alone != trained(task, tmp_path / "not")
    capfd.readouterr()
    text = (tmp_path / "chosen/real_fraction.json").read_bytes()
    assert trained(task, tmp_path / "chosen", choose_real="cross_validation") == chosen
    assert "4 of 4 parts are already finished" in "".join(capfd.readouterr())
    assert (tmp_path / "chosen/real_fraction.json").read_bytes() == text


WINNING = YAML(typ="safe").load((tiny.ROOT / "experiments/winning.yaml").read_text())
OF_TRAINING = {
    name: cell for name, cell in WINNING["cells"].items() if not any("generate" in key for key in cell)
}


def test_each_cell_of_the_experiment_trains_another_classifier(task, tmp_path):
    small = {"num_steps": 6, "warmup_steps": 2, "batch_size": 8, "seeds": [0]}
    small |= {"choose_real_folds": 2, "choose_real_from": [0.5, 1.0]}
    found = {}
    for name, cell in OF_TRAINING.items():
        sections = changed(RAW, {**WINNING["set"], **cell}, Path("experiments/winning.yaml"))
        params = parse_params(sections).train["cnn"].model_copy(update=small)
        Trainer(params, tiny.PARAMS.execution, torch.device("cpu"), "code").train(
            "mixed", task, tmp_path / name
        )
        found[name] = (tmp_path / name / "part-00000.safetensors").read_bytes()
    chosen = found.pop("share by cross-validation")
    assert chosen != found["default"] and len(set(found.values())) == len(found) == len(OF_TRAINING) - 1


def test_an_interrupted_choice_goes_on_and_ends_alike(task, tmp_path, monkeypatch):
    whole = trained(task, tmp_path / "whole", choose_real="cross_validation")
    monkeypatch.setenv("DINV_SCRATCH", str(tmp_path / "other"))
    compute, tries = Choice.compute, []

    def dies(self, task, advance):
        if len(tries) == 3:
            raise KeyboardInterrupt
        tries.append(task)
        return compute(self, task, advance)

    monkeypatch.setattr(Choice, "compute", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(task, tmp_path / "again", choose_real="cross_validation")
    monkeypatch.setattr(Choice, "compute", lambda self, *a: (tries.append(a), compute(self, *a))[1])
    assert trained(task, tmp_path / "again", choose_real="cross_validation") == whole
    assert len(tries) == 4, "three before, one after"


def test_one_image_per_class_is_too_few_to_choose_by(task, tmp_path):
    save(tmp_path / "data/real/train", [40, 160], [0, 1])
    with pytest.raises(UserError, match=r"needs two labelled images of each class; .*choose_real to none"):
        trained(task, tmp_path / "x", choose_real="cross_validation")


def test_a_search_of_its_own_refuses_the_choice():
    tuning = Tuning(question="?", trials=1, arms={"mixed": {"train.cnn.lr": [0.1, 0.2]}})
    raw = copy.deepcopy(RAW)
    check(tuning, raw, Path("tune/x.yaml"))
    raw["train"]["cnn"]["choose_real"] = "cross_validation"
    with pytest.raises(
        UserError, match=r"arms\.mixed: train\.cnn\.choose_real = 'cross_validation': set it to none"
    ):
        check(tuning, raw, Path("tune/x.yaml"))


def shown(batch):
    return batch.images[:, 0, 0, 0].long()


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_by_default_mixing_is_torchvisions_on_the_batch(mixup, cutmix):
    batch = batches_of(both(), 1, mixup_alpha=mixup, cutmix_alpha=cutmix)[0]
    assert batch.partners is None
    params = tiny.train_params(
        random_crop=False, horizontal_flip=False, mixup_alpha=mixup, cutmix_alpha=cutmix
    )
    torch.manual_seed(3)
    found = augment(batch.images, batch.targets, params, torch.Generator(), batch.partners)
    torch.manual_seed(3)
    kinds = [v2.MixUp(alpha=mixup)] if mixup else []
    kinds += [v2.CutMix(alpha=cutmix)] if cutmix else []
    expected = kinds[int(torch.randint(len(kinds), ()))](batch.images.float(), batch.targets)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_mixup_with_partners_is_one_convex_combination_with_each_partner():
    images = torch.from_numpy(tiny.random_images(6, 8, 1)).permute(0, 3, 1, 2)
    targets, partners = torch.rand(6, 3), torch.tensor([4, 4, 0, 5])
    for _ in range(5):
        mixed, soft = mix(images, targets, 1.0, 0.0, partners)
        own, other = images[:4].float(), images[partners].float()
        share = ((mixed - other) / (own - other)).nanmedian()
        torch.testing.assert_close(mixed, share * own + (1 - share) * other, atol=0.02, rtol=0)
        torch.testing.assert_close(
            soft, share * targets[:4] + (1 - share) * targets[partners], atol=1e-4, rtol=0
        )


def test_cutmix_with_partners_pastes_the_partners_rectangle():
    images = (torch.arange(6) + 1).view(6, 1, 1, 1).expand(6, 1, 16, 16).to(torch.uint8)
    targets, partners = torch.eye(6), torch.tensor([4, 4, 0, 5])
    mixed, soft = mix(images, targets, 0.0, 1.0, partners)
    pasted = mixed != images[:4]
    assert torch.equal(mixed, torch.where(pasted, images[partners], images[:4]).float())
    area = pasted.flatten(1).float().mean(1)
    assert torch.allclose(soft[torch.arange(4), partners], area, atol=1e-6) and torch.equal(
        area, area[:1].expand(4)
    )


ON = {"mixup_alpha": 1.0, "batch_size": 8}


@pytest.mark.parametrize("mixing", ["batch", "replace"])
def test_partners_of_the_other_kind(mixing):
    plain = batches_of(both(), 1, mixing=mixing, **ON)[0]
    for batch in batches_of(both(), 30, mixing=mixing, mix_partners="other_kind", **ON):
        values = shown(batch)
        assert len(values) == len(batch.partners) == 8
        assert torch.equal(values < 100, values[batch.partners] >= 100)
    first = batches_of(both(), 1, mixing=mixing, mix_partners="other_kind", **ON)[0]
    assert torch.equal(first.images, plain.images) and torch.equal(first.targets, plain.targets)


@pytest.mark.parametrize("mixing", ["batch", "replace"])
def test_partners_are_an_images_own_variant_and_a_variants_own_image(mixing):
    """Real image i has the variants 100 + i and 106 + i; image 5 has none, variant 111 names no image."""
    origins = torch.tensor([0, 1, 2, 3, 4, -1, 0, 1, 2, 3, 4, -1])
    sources = [numbered(6, 0), numbered(12, 100, origins=origins)]
    update = {"mixing": mixing, "mix_partners": "own_variant", "synthetic_loss_weight": 0.5, **ON}
    seen = set()
    for batch in batches_of(sources, 60, **update):
        values = shown(batch)
        assert len(values) == 16 and torch.equal(batch.partners, torch.arange(8, 16))
        assert torch.equal(batch.targets.sum(1), torch.where(values >= 100, 0.5, 1.0))
        seen |= set(zip(values[:8].tolist(), values[8:].tolist(), strict=True))
    pairs = {(i, v) for i in range(5) for v in (100 + i, 106 + i)}
    alone = {(5, 5)} | ({(105, 105), (111, 111)} if mixing == "batch" else set())
    assert seen == pairs | {(v, i) for i, v in pairs} | alone


def test_a_batch_of_one_kind_is_mixed_with_itself_and_nothing_else_is_pairs():
    update = {"num_steps": 4, "finish_on_real": 0.5, "mix_partners": "own_variant", **ON}
    assert [b.partners is None for b in batches_of(both(), 4, **update)] == [False, False, True, True]
    assert batches_of(both()[:1], 1, mix_partners="other_kind", **ON)[0].partners is None


def test_generated_images_of_no_real_image_have_no_own_variant():
    sources = [numbered(6, 0), numbered(6, 100, origins=torch.full((6,), -1))]
    assert batches_of(sources, 1, mix_partners="other_kind", **ON)[0].partners is not None
    with pytest.raises(UserError, match=r"mix_partners = 'own_variant': no generated image names its real"):
        batches_of(sources, 1, mix_partners="own_variant", **ON)


@pytest.mark.parametrize("kind", ["other_kind", "own_variant"])
def test_each_kind_of_partner_trains_reproducibly_and_is_not_ignored(kind):
    made = easy_images(seed=1)
    sources = [easy_images(), type(made)(made.images, made.targets, torch.arange(60))]
    first, again, without = (
        fit(sources, **ON, cutmix_alpha=1.0, mix_partners=k) for k in (kind, kind, "any")
    )
    key = "body.0.weight"
    assert torch.equal(weights(first)[key], weights(again)[key])
    assert not torch.equal(weights(first)[key], weights(without)[key])


BAD = [
    ("real_fraction", 1.5, r"real_fraction = 1\.5: .*less than or equal to 1"),
    ("real_fraction_schedule", "step", r"real_fraction_schedule = 'step': .*'cosine'"),
    ("real_fraction_end", -0.1, r"real_fraction_end = -0\.1: .*greater than or equal to 0"),
    ("choose_real", "best", r"choose_real = 'best': .*'cross_validation'"),
    ("choose_real_from", [1.0], r"choose_real_from = \[1\.0\]: .*at least 2"),
    ("choose_real_from", [1.0, 1.0], r"choose_real_from: the shares to choose from must differ"),
    ("choose_real_folds", 1, r"choose_real_folds = 1: .*greater than or equal to 2"),
    (
        "choose_real_standard_errors",
        -0.5,
        r"choose_real_standard_errors = -0\.5: .*greater than or equal to 0",
    ),
    ("finish_on_real", 1.0, r"finish_on_real = 1\.0: .*less than 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_bad_values(name, value, message):
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"][name] = value
    with pytest.raises(UserError, match=r"^params\.yaml: train\.cnn\." + message):
        parse_params(raw)


def test_parameters_that_do_not_fit_each_other():
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"]["mix_partners"] = "own_variant"
    with pytest.raises(
        UserError, match=r"train\.cnn: mix_partners = 'own_variant' needs mixup_alpha or cutmix"
    ):
        parse_params(raw)
    raw["train"]["cnn"]["cutmix_alpha"] = 1.0
    parse_params(raw)
    raw["train"]["cnn"] |= {"choose_real": "cross_validation", "real_fraction_schedule": "linear"}
    with pytest.raises(
        UserError, match=r"train\.cnn: choose_real chooses one share; set real_fraction_schedule"
    ):
        parse_params(raw)
    raw["train"]["cnn"]["real_fraction_schedule"] = "constant"
    assert parse_params(raw).train["cnn"].mix_partners == "own_variant"


def test_what_params_yaml_does_not_say_is_the_default_that_its_comments_tell():
    _, text = (tiny.ROOT / "params.yaml").read_text().split("\n  cnn:\n")
    told = dict(re.findall(r"^    # (\w+): +(\[.*?\]|\w[\w.]*)", text, re.M))
    raw = copy.deepcopy(RAW)
    raw["train"]["cnn"] |= {name: YAML(typ="safe").load(value) for name, value in told.items()}
    assert told.keys() == {name for name, field in CnnParams.model_fields.items() if not field.is_required()}
    assert parse_params(raw) == parse_params(RAW)
