"""Frechet distance: known answers, symmetry, and scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dinv.metrics.frechet import frechet_distance


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6)), rng.normal(1, 2, (300, 6))


def test_equal_sets_have_distance_zero_and_swapping_changes_nothing(features):
    a, b = features
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_known_answer_for_independent_elements():
    """Standardised exactly, then scaled by 3 and shifted by 2: 2^2 + (3 - 1)^2 per element."""
    x = np.random.default_rng(1).normal(size=(500, 4))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    assert frechet_distance(x, 3 * x + 2) == pytest.approx(4 * (4 + 4))


def test_equals_the_formula_with_scipys_matrix_square_root(features):
    a, b = features
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(s_a @ s_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_few_rows_do_not_break_it():
    a = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    assert np.isfinite(frechet_distance(a, a + 1))
