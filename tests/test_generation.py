"""The perturbation equation, partner choice, and invariants of generation."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinv.errors import UserError
from dinv.inversion.bank import EmbeddingBank, bank_statistics
from dinv.strategies.diffusion_inversion import DiffusionInversion
from dinv.strategies.perturb import perturb
from dinv.strategies.reconstruction import reconstruct

IDS = [f"image-{i}" for i in range(6)]
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def make_bank(width=16, labels=LABELS):
    n = len(labels)
    c = torch.randn(n, 3, width, generator=torch.Generator().manual_seed(0))
    return EmbeddingBank(c, labels, IDS[:n], torch.zeros(1, n), torch.zeros(1).long(), torch.zeros(1, n))


def pairs_only():
    return make_bank(labels=LABELS[:5])


def make_strategy(bank, empty_prompt=None, **params):
    return DiffusionInversion(bank, bank_statistics([bank], 3), tiny.generate_params(**params), empty_prompt)


def plan(strategy):
    return strategy.draws(range(len(strategy)))


def draws_of(labels, ids, **params):
    n = len(labels)
    c = torch.zeros(n, 1, 1)
    bank = EmbeddingBank(c, labels, list(ids), c[:, 0].T, torch.zeros(1).long(), c[:, 0].T)
    return plan(DiffusionInversion(bank, bank_statistics([bank], 9), tiny.generate_params(**params)))


def render(strategy, model, draws=None):
    return strategy.request(draws or plan(strategy)).render(model)


def test_perturb_known_answer():
    c_i, c_j, xi = (torch.full((2, 1, 1), v) for v in (1.0, 5.0, 10.0))
    out = perturb(c_i, c_j, torch.tensor([0.0, 0.25]), torch.tensor(0.1), xi)
    # own weight is 1 - a, the partner's a: 1 + 0.1 * 10 and 0.75 * 1 + 0.25 * 5 + 0.1 * 10
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0, 3.0]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 4), st.integers(0, 5))
def test_partners_are_of_the_same_class_and_never_the_image_itself(labels, variants, seed):
    labels = torch.tensor(sorted(labels * 2))
    ids = [str(i) for i in range(len(labels))]
    draws = draws_of(labels, ids, num_images_per_embedding=variants, interpolation=0.4, seed=seed)
    assert len(draws) == variants * len(labels)
    for draw in draws:
        assert draw.partner != draw.row and labels[draw.partner] == labels[draw.row]
        assert 0 <= draw.interpolation <= 0.4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=15), st.integers(1, 4))
def test_balanced_classes_get_as_many_images_as_the_largest(labels, variants):
    ids = [str(i) for i in range(len(labels))]
    params = {"num_images_per_embedding": variants, "interpolation": 0.0}
    draws = draws_of(torch.tensor(labels), ids, balance_classes=True, **params)
    counts = [sum(labels[d.row] == k for d in draws) for k in set(labels)]
    assert set(counts) == {variants * max(labels.count(k) for k in labels)}
    assert len({(d.row, d.variant) for d in draws}) == len(draws)
    per_row = [max(d.variant for d in draws if d.row == row) + 1 for row in range(len(labels))]
    assert min(per_row) >= variants
    for k in set(labels):
        of_class = [n for n, label in zip(per_row, labels, strict=True) if label == k]
        assert max(of_class) - min(of_class) <= 1


def test_balancing_changes_nothing_where_classes_are_equal():
    labels = torch.tensor([0, 0, 1, 1])
    plain, balanced = (draws_of(labels, IDS[:4], balance_classes=b) for b in (False, True))
    assert plain == balanced and [d.row for d in plain[:5]] == [0, 1, 2, 3, 0]


def test_every_partner_is_reached():
    draws = draws_of(torch.zeros(4).long(), IDS[:4], num_images_per_embedding=60)
    for row in range(4):
        assert {d.partner for d in draws if d.row == row} == {0, 1, 2, 3} - {row}


def test_a_lonely_image_is_refused_only_when_it_needs_a_partner():
    with pytest.raises(UserError, match=r"image-5.*add images, or set it to 0"):
        draws_of(LABELS, IDS, interpolation=0.1)
    assert len(draws_of(LABELS, IDS, interpolation=0.0)) == 12


def test_more_variants_only_append():
    bank = pairs_only()
    few = plan(make_strategy(bank, num_images_per_embedding=2))
    many = plan(make_strategy(bank, num_images_per_embedding=5))
    assert many[: len(few)] == few


def test_draws_do_not_depend_on_other_images_order():
    strategy = make_strategy(pairs_only(), interpolation=0.0)
    forwards, backwards = strategy.conditions(plan(strategy)), strategy.conditions(plan(strategy)[::-1])
    assert torch.equal(forwards, backwards.flip(0))


def test_zero_noise_and_zero_interpolation_is_the_embedding_itself():
    bank = make_bank()
    strategy = make_strategy(bank, noise_std=0.0, interpolation=0.0)
    draws = plan(strategy)
    assert torch.equal(strategy.conditions(draws), bank.prompt_embeds[[d.row for d in draws]])


def test_noise_has_the_asked_spread():
    bank = pairs_only()
    for unit, factor in (("absolute", 1.0), ("relative", bank.prompt_embeds.std(0))):
        strategy = make_strategy(
            bank, noise_std=0.3, noise_unit=unit, interpolation=0.0, num_images_per_embedding=400
        )
        draws = [d for d in plan(strategy) if d.row == 1]
        noise = (strategy.conditions(draws) - bank.prompt_embeds[1]) / factor
        assert abs(noise.std() - 0.3) < 0.01


def test_fixed_interpolation_uses_the_whole_weight_and_uniform_spreads():
    labels = torch.zeros(5).long()
    fixed = draws_of(labels, IDS[:5], interpolation=0.3, interpolation_distribution="fixed")
    assert {d.interpolation for d in fixed} == {0.3}
    spread = draws_of(labels, IDS[:5], interpolation=0.3, num_images_per_embedding=100)
    assert abs(np.mean([d.interpolation for d in spread]) - 0.15) < 0.02


def test_guidance_one_ignores_the_unconditional_choice(model):
    bank = pairs_only()
    images = []
    for unconditional in ("mean", "empty"):
        images.append(render(make_strategy(bank, unconditional=unconditional), model))
    assert torch.equal(*images)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_std": 0.9},
        {"interpolation": 0.9},
        {"guidance_scale": 3.0},
        {"seed": 1},
        {"num_inference_steps": 5},
        {"scheduler": "ddim"},
        {"noise_unit": "relative"},
    ],
)
def test_every_parameter_changes_images_and_fingerprint(model, change):
    bank = pairs_only()
    a, b = (make_strategy(bank, **c) for c in ({}, change))
    assert a.fingerprints(plan(a)) != b.fingerprints(plan(b))
    assert not torch.equal(render(a, model), render(b, model))


@pytest.mark.parametrize("change", [{"unconditional": "empty"}, {"unconditional_scope": "class"}])
def test_unconditional_choices_matter_under_guidance(model, change):
    bank = pairs_only()
    empty = model.empty_prompt_embeds(3)
    a, b = (make_strategy(bank, empty, guidance_scale=4.0, **c) for c in ({}, change))
    assert a.fingerprints(plan(a)) != b.fingerprints(plan(b))
    assert not torch.equal(render(a, model), render(b, model))


def test_rendering_does_not_depend_on_micro_batch(model):
    strategy = make_strategy(pairs_only())
    whole = render(strategy, model).int()
    request = strategy.request(plan(strategy))
    pieces = torch.cat([one.render(model) for one in request.split(1)]).int()
    assert len(request.split(3)) == 4
    assert (whole - pieces).abs().max() <= 1


def test_provenance_names_source_partner_and_settings():
    bank = pairs_only()
    strategy = make_strategy(bank, guidance_scale=2.0)
    columns = strategy.provenance(plan(strategy))
    assert columns["source_id"] == bank.ids * 2
    assert all(p != s for p, s in zip(columns["partner_id"], columns["source_id"], strict=True))
    assert set(columns["guidance_scale"]) == {2.0} and columns["variant"] == [0] * 5 + [1] * 5


def test_wrong_embedding_width_is_refused(model):
    with pytest.raises(UserError, match="width 8, the model's cross-attention 16"):
        render(make_strategy(make_bank(width=8), interpolation=0.0), model)


def test_reconstruction_is_the_vae_alone(model):
    images = torch.from_numpy(tiny.random_images(2))
    assert torch.equal(reconstruct(model, images), model.decode(model.encode(images).mean))
