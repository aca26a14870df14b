"""The perturbation equation, partner choice, and invariants of generation."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dinv.errors import UserError
from dinv.generation.diffusion_inversion import DiffusionInversion, noise_std, plan_draws
from dinv.generation.perturb import perturb
from dinv.generation.reconstruction import reconstruct
from dinv.inversion.bank import EmbeddingBank

IDS = [f"image-{i}" for i in range(6)]
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])


def make_bank(width=16, labels=LABELS):
    n = len(labels)
    c = torch.randn(n, 3, width, generator=torch.Generator().manual_seed(0))
    return EmbeddingBank(c, labels, IDS[:n], torch.zeros(1, n), torch.zeros(1).long(), torch.zeros(1, n))


def pairs_only():
    return make_bank(labels=LABELS[:5])


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
    params = tiny.generate_params(num_images_per_embedding=variants, interpolation=0.4, seed=seed)
    plan = plan_draws(labels, ids, params)
    assert len(plan) == variants * len(labels)
    for draw in plan:
        assert draw.partner != draw.row and labels[draw.partner] == labels[draw.row]
        assert 0 <= draw.interpolation <= 0.4


def test_every_partner_is_reached():
    plan = plan_draws(torch.zeros(4).long(), IDS[:4], tiny.generate_params(num_images_per_embedding=60))
    assert {d.partner for d in plan if d.row == 0} == {1, 2, 3}


def test_a_lonely_image_is_refused_only_when_it_needs_a_partner():
    with pytest.raises(UserError, match=r"image-5.*add images, or set it to 0"):
        plan_draws(LABELS, IDS, tiny.generate_params(interpolation=0.1))
    assert len(plan_draws(LABELS, IDS, tiny.generate_params(interpolation=0.0))) == 12


def test_more_variants_only_append():
    bank = pairs_only()
    few = plan_draws(bank.labels, bank.ids, tiny.generate_params(num_images_per_embedding=2))
    many = plan_draws(bank.labels, bank.ids, tiny.generate_params(num_images_per_embedding=5))
    assert many[: len(few)] == few


def test_draws_do_not_depend_on_other_images_order():
    params = tiny.generate_params(interpolation=0.0)
    bank = pairs_only()
    strategy = DiffusionInversion.__new__(DiffusionInversion)
    strategy.bank, strategy.params, strategy._noise_std = bank, params, noise_std(bank, params)
    plan = plan_draws(bank.labels, bank.ids, params)
    forwards, backwards = strategy.conditions(plan), strategy.conditions(plan[::-1])
    assert torch.equal(forwards, backwards.flip(0))


def test_zero_noise_and_zero_interpolation_is_the_embedding_itself(model):
    bank = make_bank()
    strategy = DiffusionInversion(model, bank, tiny.generate_params(noise_std=0.0, interpolation=0.0))
    plan = strategy.plan()
    assert torch.equal(strategy.conditions(plan), bank.prompt_embeds[[d.row for d in plan]])


def test_noise_has_the_asked_spread(model):
    bank = pairs_only()
    for unit, factor in (("absolute", 1.0), ("relative", bank.prompt_embeds.std(0))):
        params = tiny.generate_params(
            noise_std=0.3, noise_unit=unit, interpolation=0.0, num_images_per_embedding=400
        )
        strategy = DiffusionInversion(model, bank, params)
        plan = [d for d in strategy.plan() if d.row == 1]
        noise = (strategy.conditions(plan) - bank.prompt_embeds[1]) / factor
        assert abs(noise.std() - 0.3) < 0.01


def test_fixed_interpolation_uses_the_whole_weight_and_uniform_spreads():
    labels = torch.zeros(5).long()
    fixed = plan_draws(
        labels, IDS[:5], tiny.generate_params(interpolation=0.3, interpolation_distribution="fixed")
    )
    assert {d.interpolation for d in fixed} == {0.3}
    spread = plan_draws(
        labels, IDS[:5], tiny.generate_params(interpolation=0.3, num_images_per_embedding=100)
    )
    assert abs(np.mean([d.interpolation for d in spread]) - 0.15) < 0.02


def test_guidance_one_ignores_the_unconditional_choice(model):
    bank = pairs_only()
    images = []
    for unconditional in ("mean", "empty"):
        strategy = DiffusionInversion(model, bank, tiny.generate_params(unconditional=unconditional))
        images.append(strategy.render(strategy.plan()))
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
    a, b = (DiffusionInversion(model, bank, tiny.generate_params(**c)) for c in ({}, change))
    assert a.fingerprint(a.plan()) != b.fingerprint(b.plan())
    assert not torch.equal(a.render(a.plan()), b.render(b.plan()))


@pytest.mark.parametrize("change", [{"unconditional": "empty"}, {"unconditional_scope": "class"}])
def test_unconditional_choices_matter_under_guidance(model, change):
    bank = pairs_only()
    a, b = (
        DiffusionInversion(model, bank, tiny.generate_params(guidance_scale=4.0, **c)) for c in ({}, change)
    )
    assert a.fingerprint(a.plan()) != b.fingerprint(b.plan())
    assert not torch.equal(a.render(a.plan()), b.render(b.plan()))


def test_rendering_does_not_depend_on_micro_batch(model):
    strategy = DiffusionInversion(model, pairs_only(), tiny.generate_params())
    plan = strategy.plan()
    whole = strategy.render(plan).int()
    pieces = torch.cat([strategy.render([draw]) for draw in plan]).int()
    assert (whole - pieces).abs().max() <= 1


def test_provenance_names_source_partner_and_settings(model):
    bank = pairs_only()
    strategy = DiffusionInversion(model, bank, tiny.generate_params(guidance_scale=2.0))
    plan = strategy.plan()
    columns = strategy.provenance(plan)
    assert columns["source_id"] == bank.ids * 2
    assert all(p != s for p, s in zip(columns["partner_id"], columns["source_id"], strict=True))
    assert set(columns["guidance_scale"]) == {2.0} and columns["variant"] == [0] * 5 + [1] * 5


def test_wrong_embedding_width_is_refused(model):
    with pytest.raises(UserError, match="width 8, the model's cross-attention 16"):
        DiffusionInversion(model, make_bank(width=8), tiny.generate_params())


def test_reconstruction_is_the_vae_alone(model):
    images = torch.from_numpy(tiny.random_images(2))
    assert torch.equal(reconstruct(model, images), model.decode(model.encode(images).mean))
