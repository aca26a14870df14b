"""Noise with the covariance of learned embeddings, and guidance away from the class that is nearest."""

import numpy as np
import pytest
import tiny
import torch
from sklearn.covariance import LedoitWolf
from test_config import RAW, changed
from test_generation import IDS, InMemory, bank_of, make_bank, make_strategy, pairs_only, plan, render, row

from dinv.errors import UserError
from dinv.inversion.bank import bank_statistics
from dinv.params import parse_params
from dinv.rng import generator
from dinv.strategies.class_noise import nearest_others, shrunk
from dinv.strategies.diffusion_inversion import Perturbation, keys, perturb


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
    """N(0, I), keyed by the image; no covariance is looked at, and the table has no further column."""
    strategy = make_strategy(pairs_only(), noise_std=0.7)
    draws = plan(strategy)
    xi = torch.stack([torch.randn(3, 16, generator=generator(0, "embedding", *key)) for key in keys(draws)])
    of = {image_id: i for i, image_id in enumerate(strategy.bank.ids)}
    c_j = strategy.bank.embeds([of[d.facts["partner_id"]] for d in draws])
    a = torch.tensor([d.facts["interpolation"] for d in draws])
    expected = perturb(strategy.bank.embeds([row(d) for d in draws]), c_j, a, torch.tensor(0.7), xi)
    assert torch.equal(strategy.conditions(draws), expected)
    assert "noise_covariance" not in draws[0].facts and not strategy._covariances


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
    assert all(d.facts.get("noise_covariance") == update.get("noise_covariance") for d in draws)
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
