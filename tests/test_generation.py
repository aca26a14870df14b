"""The perturbation equation, partner choice, and invariants of generation."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinv.errors import UserError
from dinv.inversion.bank import EmbeddingBank, bank_statistics
from dinv.strategies.base import Draw
from dinv.strategies.diffusion_inversion import (
    DiffusionInversion,
    DiffusionInversionParams,
    Perturbation,
    perturb,
)
from dinv.strategies.reconstruction import reconstruct
from dinv.strategies.worker import first_of_each_class, image_digests, micro_batches

IDS = [f"image-{i}" for i in range(6)]
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def make_bank(width=16, labels=LABELS):
    n = len(labels)
    c = torch.randn(n, 3, width, generator=torch.Generator().manual_seed(0))
    return bank_of(c, labels, IDS[:n])


def bank_of(c, labels, ids):
    loss, visits = torch.zeros(1, len(ids)), torch.zeros(1).long()
    return EmbeddingBank(c, labels, list(ids), visits, loss, visits, loss)


def pairs_only():
    return make_bank(labels=LABELS[:5])


class InMemory(DiffusionInversion):
    """The strategy on a bank that is not read from a folder."""

    def __init__(self, bank, params, empty_prompt=None, num_classes=3):
        Perturbation.__init__(self, bank, bank_statistics([bank], num_classes), params, empty_prompt)


def make_strategy(bank, empty_prompt=None, **params):
    return InMemory(bank, tiny.generate_params(**params), empty_prompt)


def plan(strategy):
    return strategy.draws(range(len(strategy)))


def draws_of(labels, ids, **params):
    bank = bank_of(torch.zeros(len(labels), 1, 1), labels, ids)
    return plan(InMemory(bank, tiny.generate_params(**params), num_classes=9))


def row(draw, ids=IDS):
    return list(ids).index(draw.source_id)


def partner(draw, ids=IDS):
    return list(ids).index(draw.facts["partner_id"])


def render(strategy, model, draws=None):
    return strategy.renderer().open(lambda: model)(strategy.inputs(draws or plan(strategy)))


def digests(strategy):
    return image_digests(strategy, plan(strategy), [])


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
        i, j = row(draw, ids), partner(draw, ids)
        assert i != j and labels[i] == labels[j] == draw.label
        assert 0 <= draw.facts["interpolation"] <= 0.4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=15), st.integers(1, 4))
def test_balanced_classes_get_as_many_images_as_the_largest(labels, variants):
    ids = [str(i) for i in range(len(labels))]
    params = {"num_images_per_embedding": variants, "interpolation": 0.0}
    draws = draws_of(torch.tensor(labels), ids, balance_classes=True, **params)
    counts = [sum(d.label == k for d in draws) for k in set(labels)]
    assert set(counts) == {variants * max(labels.count(k) for k in labels)}
    assert len({d.id for d in draws}) == len(draws)
    per_row = [max(d.facts["variant"] for d in draws if d.source_id == i) + 1 for i in ids]
    assert min(per_row) >= variants
    for k in set(labels):
        of_class = [n for n, label in zip(per_row, labels, strict=True) if label == k]
        assert max(of_class) - min(of_class) <= 1


def test_balancing_changes_nothing_where_classes_are_equal():
    labels = torch.tensor([0, 0, 1, 1])
    plain, balanced = (draws_of(labels, IDS[:4], balance_classes=b) for b in (False, True))
    assert plain == balanced and [row(d) for d in plain[:5]] == [0, 1, 2, 3, 0]


def test_every_partner_is_reached():
    draws = draws_of(torch.zeros(4).long(), IDS[:4], num_images_per_embedding=60)
    for i in range(4):
        assert {partner(d) for d in draws if row(d) == i} == {0, 1, 2, 3} - {i}


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
    assert torch.equal(strategy.conditions(draws), bank.prompt_embeds[[row(d) for d in draws]])


def test_noise_has_the_asked_spread():
    bank = pairs_only()
    for unit, factor in (("absolute", 1.0), ("relative", bank.prompt_embeds.std(0))):
        strategy = make_strategy(
            bank, noise_std=0.3, noise_unit=unit, interpolation=0.0, num_images_per_embedding=400
        )
        draws = [d for d in plan(strategy) if row(d) == 1]
        noise = (strategy.conditions(draws) - bank.prompt_embeds[1]) / factor
        assert abs(noise.std() - 0.3) < 0.01


def test_fixed_interpolation_uses_the_whole_weight_and_uniform_spreads():
    labels = torch.zeros(5).long()
    fixed = draws_of(labels, IDS[:5], interpolation=0.3, interpolation_distribution="fixed")
    assert {d.facts["interpolation"] for d in fixed} == {0.3}
    spread = draws_of(labels, IDS[:5], interpolation=0.3, num_images_per_embedding=100)
    assert abs(np.mean([d.facts["interpolation"] for d in spread]) - 0.15) < 0.02


def test_guidance_one_ignores_the_unconditional_choice(model):
    bank = pairs_only()
    images = []
    for unconditional in ("mean", "empty"):
        images.append(render(make_strategy(bank, unconditional=unconditional), model))
    assert torch.equal(*images)


# A change of each parameter; those of the second table need guidance, those of the third change which images there are.
CHANGES = {
    "noise_std": 0.9,
    "interpolation": 0.9,
    "interpolation_distribution": "fixed",
    "guidance_scale": 3.0,
    "seed": 1,
    "num_inference_steps": 5,
    "scheduler": "ddim",
    "noise_unit": "relative",
    "noise_covariance": "pooled",
}
UNDER_GUIDANCE = {"unconditional": "empty", "unconditional_scope": "class"}
WHICH_IMAGES = {"num_images_per_embedding", "balance_classes"}


def test_every_parameter_is_tried():
    tried = {*CHANGES, *UNDER_GUIDANCE, *WHICH_IMAGES, "strategy", "input"}
    assert tried == set(DiffusionInversionParams.model_fields)


@pytest.mark.parametrize(("name", "value"), (CHANGES | UNDER_GUIDANCE).items())
def test_every_parameter_changes_images_and_digests(model, name, value):
    bank, empty = pairs_only(), model.empty_prompt_embeds(3)
    scale = {"guidance_scale": 4.0 if name in UNDER_GUIDANCE else 1.0}
    a, b = (make_strategy(bank, empty, **{**scale, **change}) for change in ({}, {name: value}))
    assert not set(digests(a)) & set(digests(b))
    assert not torch.equal(render(a, model), render(b, model))


def test_a_digest_is_of_one_image_and_sees_draw_and_key():
    """More variants keep the digests of those there were; another key, label or fact does not."""
    bank = pairs_only()
    few, many = (make_strategy(bank, num_images_per_embedding=n) for n in (2, 5))
    assert digests(many)[:10] == digests(few) and len(set(digests(many))) == 25
    draws = plan(few)[:1]
    known = {*image_digests(few, draws, []), *image_digests(few, draws, ["other code"])}
    d = draws[0]
    relabelled = [
        Draw(d.id, d.label + 1, d.source_id, d.facts),
        Draw(d.id, d.label, d.source_id, d.facts, (1.0,)),
    ]
    for other in relabelled:
        known |= set(image_digests(few, [other], []))
    assert len(known) == 4


def test_rendering_does_not_depend_on_micro_batch(model):
    strategy = make_strategy(pairs_only())
    whole = render(strategy, model).int()
    inputs, made = strategy.inputs(plan(strategy)), strategy.renderer().open(lambda: model)
    pieces = torch.cat([made(batch) for batch in micro_batches(inputs, 1)]).int()
    assert len(micro_batches(inputs, 3)) == 4
    assert (whole - pieces).abs().max() <= 1


def test_draws_name_source_partner_and_settings():
    bank = pairs_only()
    draws = plan(make_strategy(bank, guidance_scale=2.0))
    assert [d.source_id for d in draws] == bank.ids * 2
    assert all(d.facts["partner_id"] != d.source_id for d in draws)
    assert {d.facts["guidance_scale"] for d in draws} == {2.0}
    assert [d.facts["variant"] for d in draws] == [0] * 5 + [1] * 5


def test_the_grid_shows_the_first_image_of_each_class_that_there_is():
    found = first_of_each_class(make_strategy(pairs_only()), [0, 1, 2])
    assert {k: d.id for k, d in found.items()} == {0: "image-0#0", 1: "image-3#0"}


def test_wrong_embedding_width_is_refused(model):
    with pytest.raises(UserError, match="width 8, the model's cross-attention 16"):
        render(make_strategy(make_bank(width=8), interpolation=0.0), model)


def test_reconstruction_is_the_vae_alone(model):
    images = torch.from_numpy(tiny.random_images(2))
    assert torch.equal(reconstruct(model, images), model.decode(model.encode(images).mean))
