"""Noise with the covariance of learned embeddings, and guidance away from the class that is nearest."""

import numpy as np
import pytest
import tiny
import tiny_methods as methods
import torch
from diffusers import DDIMScheduler
from pydantic import ValidationError
from sklearn.covariance import LedoitWolf
from test_config import RAW, changed
from test_generation import (
    IDS,
    LABELS,
    InMemory,
    bank_of,
    make_bank,
    make_strategy,
    pairs_only,
    plan,
    render,
    row,
)

from dinv.errors import UserError
from dinv.inversion.bank import bank_statistics, save_statistics
from dinv.params import parse_params
from dinv.rng import generator
from dinv.strategies.base import Material
from dinv.strategies.class_noise import nearest_others, shrunk
from dinv.strategies.diffusion_inversion import DiffusionInversion, Perturbation, keys, perturb
from dinv.strategies.from_noise import start_latents
from dinv.strategies.other_class_guidance import OtherClassGuidance


def centred(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 2, d)
    return rows - rows.mean(0)


@pytest.mark.parametrize(("n", "d"), [(2, 6), (5, 12), (40, 3)])
def test_a_draw_is_the_linear_map_whose_square_is_scikit_learns_covariance(n, d):
    """xi = A w + B eps has the covariance A A^T + B B^T: exactly that of LedoitWolf, without drawing."""
    rows = centred(n, d)
    sigma, theirs = shrunk(rows), LedoitWolf().fit(rows.numpy())
    a = torch.stack([sigma.draw(torch.zeros(d), w) for w in torch.eye(n)], 1)
    b = torch.stack([sigma.draw(eps, torch.zeros(n)) for eps in torch.eye(d)], 1)
    assert np.allclose(a @ a.T + b @ b.T, theirs.covariance_, atol=1e-5)
    assert sigma.shrinkage == pytest.approx(theirs.shrinkage_) and 0 < sigma.shrinkage <= 1
    assert sigma.variance == pytest.approx(np.trace(theirs.covariance_) / d)


def test_by_default_noise_is_that_of_before():
    """N(0, I), keyed by the image; no covariance is looked at."""
    strategy = make_strategy(pairs_only(), noise_std=0.7)
    draws = plan(strategy)
    xi = torch.stack([torch.randn(3, 16, generator=generator(0, "embedding", *key)) for key in keys(draws)])
    of = {image_id: i for i, image_id in enumerate(strategy.bank.ids)}
    c_j = strategy.bank.embeds([of[d.facts["partner_id"]] for d in draws])
    a = torch.tensor([d.facts["interpolation"] for d in draws])
    expected = perturb(strategy.bank.embeds([row(d) for d in draws]), c_j, a, torch.tensor(0.7), xi)
    assert torch.equal(strategy.conditions(draws), expected)
    assert draws[0].facts["noise_covariance"] == "isotropic" and not strategy._covariances


def two_classes(n=40):
    """Class 0 varies in its first element only, class 1 in its last; [2n, 1, 4]."""
    g = torch.Generator().manual_seed(0)
    c = torch.zeros(2 * n, 1, 4)
    c[:n, 0, 0] = torch.randn(n, generator=g)
    c[n:, 0, 3] = 3 * torch.randn(n, generator=g)
    labels = torch.tensor([0] * n + [1] * n)
    return bank_of(c, labels, [f"i{k}" for k in range(2 * n)])


def noise_of(bank, which, **update):
    plain = {"interpolation": 0.0, "noise_std": 0.5, "num_images_per_embedding": 60}
    strategy = InMemory(bank, tiny.generate_params(**plain, **update), num_classes=2)
    draws = [d for d in plan(strategy) if d.label == which]
    rows = [strategy.bank.ids.index(str(d.source_id)) for d in draws]
    assert all(d.facts["noise_covariance"] == update.get("noise_covariance", "isotropic") for d in draws)
    return (strategy.conditions(draws) - bank.embeds(rows))[:, 0]


def test_noise_goes_where_the_class_varies():
    bank = two_classes()
    for which, element in ((0, 0), (1, 3)):
        variance = noise_of(bank, which, noise_covariance="class").square().mean(0)
        assert variance.argmax() == element and variance[element] > 0.9 * variance.sum()
        assert variance.mean() == pytest.approx(0.25, rel=0.15), "lambda^2, as of isotropic noise"
    pooled = noise_of(bank, 0, noise_covariance="pooled").square().mean(0)
    assert pooled[3] > 4 * pooled[0] > 10 * pooled[1]


def test_relative_noise_has_the_embeddings_own_unit():
    bank = two_classes()
    own = bank.prompt_embeds[40:, 0, 3].var().item()
    variance = noise_of(bank, 1, noise_covariance="class", noise_unit="relative").square().mean(0)
    assert variance[3] == pytest.approx(0.25 * own, rel=0.15)


@pytest.mark.parametrize("covariance", ["class", "pooled"])
def test_an_images_noise_does_not_depend_on_the_others_of_its_batch(covariance):
    few = make_strategy(pairs_only(), noise_covariance=covariance)
    many = make_strategy(pairs_only(), noise_covariance=covariance, num_images_per_embedding=4)
    draws = plan(few)
    assert plan(many)[: len(draws)] == draws, "more variants only append"
    whole = many.conditions(plan(many))[: len(draws)]
    assert torch.equal(torch.cat([few.conditions([d]) for d in draws]), whole)


def test_one_embedding_has_no_covariance():
    alone = bank_of(torch.randn(3, 1, 4), torch.tensor([0, 0, 1]), IDS[:3])
    found = InMemory(alone, tiny.generate_params(interpolation=0.0, noise_covariance="class"))
    with pytest.raises(UserError, match=r"noise_covariance = 'class': embeddings of class 1 do not differ"):
        found.conditions(plan(found))
    pooled = InMemory(alone, tiny.generate_params(interpolation=0.0, noise_covariance="pooled"))
    assert pooled.conditions(plan(pooled)).isfinite().all()


def test_the_nearest_other_class_is_by_distance_of_means():
    means = torch.tensor([[0.0, 0], [1, 0], [5, 0], [0.1, 0]]).view(4, 1, 2)
    assert nearest_others(means, torch.tensor([True, True, True, True])).tolist() == [3, 3, 1, 0]
    assert nearest_others(means, torch.tensor([True, True, True, False])).tolist()[:3] == [1, 0, 1]


def test_guidance_leads_away_from_the_nearest_other_class(model):
    bank = make_bank()
    update = {"interpolation": 0.0, "guidance_scale": 2.0}
    strategy = make_strategy(bank, unconditional="other_class", **update)
    means = bank_statistics([bank], 3).class_means
    draws = plan(strategy)
    for draw, uncond in zip(draws, strategy.unconditional(draws), strict=True):
        others = [k for k in range(3) if k != draw.label]
        nearest = min(others, key=lambda k: (means[k] - means[draw.label]).norm())
        assert torch.equal(uncond, means[nearest])
    assert not torch.equal(render(strategy, model), render(make_strategy(bank, **update), model))


def test_a_single_class_has_no_other():
    single = bank_of(torch.randn(3, 1, 4), torch.zeros(3).long(), IDS[:3])
    with pytest.raises(UserError, match=r"unconditional = 'other_class': the images are of one class"):
        Perturbation(
            single,
            bank_statistics([single], 2),
            tiny.generate_params(unconditional="other_class", guidance_scale=2.0),
        )


def test_bad_values():
    for name, value in (("noise_covariance", "full"), ("unconditional", "other")):
        raw = changed(f"generate.inversion.{name}", value)
        with pytest.raises(UserError, match=rf"generate\.inversion\.{name} = '{value}'"):
            parse_params(raw)
    raw = changed("generate.inversion.noise_covariance", "isotropic")
    assert parse_params(raw) == parse_params(RAW)


# Away from another class, beside the unconditional condition.


def beside(folder, model, **update):
    """The strategy on embeddings in a folder."""
    real = methods.save_real(folder / "real", labels=LABELS.tolist())
    methods.save_embeddings(folder, make_bank().prompt_embeds, LABELS.tolist(), IDS)
    save_statistics(bank_statistics([make_bank()], 3), folder)
    raw = {**tiny.generate_params().model_dump(), "interpolation": 0.0, "strategy": "other_class_guidance"}
    raw |= {"input": "x", "guidance_scale": 2.0, "num_inference_steps": 4, "scheduler": "ddim", **update}
    params = OtherClassGuidance.Params.model_validate({"other_class_scale": 0.5, **raw})
    return OtherClassGuidance(params, Material(real, folder, lambda: model))


@pytest.fixture(scope="module")
def model(grey_model_folder):
    return tiny.load_tiny(grey_model_folder)


def test_the_other_classs_term_is_one_more_in_the_equation_of_guidance(model, tmp_path):
    """eps = eps_u + s (eps_c - eps_u) - o (eps_o - eps_u), in a DDIM loop of diffusers' own."""
    strategy = beside(tmp_path, model)
    draws = plan(strategy)[:3]
    inputs = strategy.inputs(draws)
    means = bank_statistics([make_bank()], 3).class_means
    others = nearest_others(means, torch.ones(3, dtype=torch.bool))
    assert torch.equal(inputs["other_prompt_embeds"], means[others[[d.label for d in draws]]])
    scheduler = DDIMScheduler.from_config(model.schedule, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(4)
    z = start_latents(inputs["noise_seed"], model.latent_shape)
    with torch.no_grad():
        for t in scheduler.timesteps:
            u, c, o = (
                model.unet(z, t, encoder_hidden_states=inputs[name]).sample
                for name in ("negative_prompt_embeds", "prompt_embeds", "other_prompt_embeds")
            )
            z = scheduler.step(u + 2 * (c - u) - 0.5 * (o - u), t, z).prev_sample
    found = render(strategy, model, draws).int()
    assert (found - model.decode(z).int()).abs().max() <= 1
    assert (
        found - render(beside(tmp_path, model, other_class_scale=2.0), model, draws).int()
    ).abs().max() > 1


@pytest.mark.parametrize("update", [{}, {"scheduler": "pndm"}, {"guidance_scale": 1.0}])
def test_the_cost_that_is_reported_is_what_the_unet_computes(model, tmp_path, monkeypatch, update):
    away = beside(tmp_path, model, **{**update, "guidance_scale": 2.0})
    params = away.params.model_dump(exclude={"strategy", "other_class_scale"}) | update
    plain = DiffusionInversion(tiny.generate_params(**params), away.material)
    for strategy in (away, plain):
        rows, forward = [], model.unet.forward
        monkeypatch.setattr(
            model.unet, "forward", lambda z, *a, f=forward, r=rows, **k: (r.append(len(z)), f(z, *a, **k))[1]
        )
        draws = plan(strategy)
        render(strategy, model, draws)
        monkeypatch.undo()
        assert sum(rows) == sum(d.facts["unet_passes"] for d in draws) > 0


def test_but_for_that_term_it_is_diffusion_inversion(model, tmp_path):
    strategy = beside(tmp_path, model)
    plain = DiffusionInversion(
        tiny.generate_params(**strategy.params.model_dump(exclude={"strategy", "other_class_scale"})),
        strategy.material,
    )
    draws = plan(strategy)
    own = {"other_class_scale": 0.5, "unet_passes": 12}
    assert [{**d.facts, **own} for d in plan(plain)] == [d.facts for d in draws]
    theirs = plain.inputs(plan(plain))
    assert all(torch.equal(strategy.inputs(draws)[name], value) for name, value in theirs.items())
    nearly = beside(tmp_path, model, other_class_scale=1e-6)
    ours, theirs = render(nearly, model, draws[:4]).int(), render(plain, model, plan(plain)[:4]).int()
    assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("update", [{"guidance_scale": 1.0}, {"unconditional": "other_class"}])
def test_both_terms_are_wanted(model, tmp_path, update):
    with pytest.raises(
        ValidationError, match="other_class_scale stands beside guidance away from the uncond"
    ):
        beside(tmp_path, model, **update)
