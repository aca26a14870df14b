"""Metrics of image sets and calibration: known answers, swapped arguments, independent implementations."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from torch_fidelity.metric_kid import kernel_mmd

from dinv.metrics.calibration import expected_calibration_error
from dinv.metrics.image_sets import (
    distances_table,
    distribution_distances,
    divide,
    image_set_numbers,
    memorisation,
)
from dinv.metrics.kernel_distance import kernel_distance
from dinv.metrics.neighbors import nearest_distance, prdc, share_nearer


def features(n, seed, shift=0.0, scale=1.0, width=8):
    rng = np.random.default_rng(seed)
    return (shift + scale * rng.normal(size=(n, width))).astype(np.float32)


def column(*values):
    return np.array(values, np.float32)[:, None]


def test_prdc_counted_by_hand():
    """k = 1. Radii of the reals 1, 1, 1, 8 and of the fakes 8.5, 8.5, 21."""
    found = prdc(column(0, 1, 2, 10), column(0.5, 9, 30), 1)
    assert found.precision == pytest.approx(2 / 3) and found.recall == 1.0
    assert found.density == 1.0 and found.coverage == 0.75


def test_an_image_on_the_edge_of_a_ball_is_outside():
    """k = 1. The real balls reach from -1 to 1, 0 to 2 and 1 to 5: -1 and 5 lie on edges."""
    found = prdc(column(0, 1, 3), column(-1, 5), 1)
    assert (found.precision, found.density, found.coverage) == (0, 0, 0)
    assert prdc(column(-1, 5), column(0, 1, 3), 1).recall == 0


def test_swapping_the_sets_swaps_precision_and_recall_only():
    a, b = features(80, 0), features(60, 1, shift=0.7, scale=0.5)
    there, back = prdc(a, b, 3), prdc(b, a, 3)
    assert (there.precision, there.recall) == (back.recall, back.precision)
    assert there.precision > there.recall + 0.2, "a narrow set within a wide one is precise, not diverse"
    assert there.density != pytest.approx(back.density) and there.coverage != pytest.approx(back.coverage)


def test_equal_sets_are_perfect_and_far_ones_worthless():
    a = features(50, 0)
    same, far = prdc(a, a, 5), prdc(a, a + 100, 5)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0, 2), st.floats(0.3, 2))
def test_prdc_equals_the_authors_package(seed, k, shift, scale):
    real, fake = features(40, seed), features(30, seed + 1, shift, scale)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(real, fake, k)
    assert vars(prdc(real, fake, k)) == pytest.approx(theirs)


def test_chunks_do_not_change_the_neighbours(monkeypatch):
    import sklearn

    a, b = features(300, 0), features(200, 1, shift=0.3)
    whole = prdc(a, b, 5)
    with sklearn.config_context(working_memory=0.01):
        assert prdc(a, b, 5) == whole


def test_kernel_distance_counted_by_hand():
    """One feature, kernel (x y + 1)^3: within a 1 and 27 (unequal pairs only), across 1 and 8."""
    a, b = column(0, 1), column(0, 2)
    # pairs: a: k(0, 1) = 1; b: k(0, 2) = 1; across: k(0, 0) = k(0, 2) = k(1, 0) = 1, k(1, 2) = 27
    assert kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * (1 + 1 + 1 + 27) / 4)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_equals_torch_fidelitys_on_one_subset(shift):
    a, b = (x.astype(np.float64) for x in (features(70, 0), features(70, 1, shift)))
    theirs = kernel_mmd(
        a,
        b,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
    )
    assert kernel_distance(a, b) == pytest.approx(theirs)
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a))


def test_kernel_distance_is_unbiased():
    found = [kernel_distance(features(40, 2 * s), features(60, 2 * s + 1)) for s in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def test_nearest_distances_by_hand():
    assert nearest_distance(column(0, 4, 10), column(1, 7)).tolist() == [1, 3, 3]
    # nearer to a, a tie, nearer to b
    assert share_nearer(column(0, 5, 9), column(1), column(9)) == 0.5
    assert share_nearer(column(0, 1, 9), column(1), column(9)) == pytest.approx(2 / 3)


def test_memorisation_tells_copies_from_new_images():
    train, unseen, new = features(200, 0), features(300, 1), features(500, 2)
    rows = memorisation({"copies": train + 1e-3, "new": new}, train, unseen, 0)
    value = {(images, metric): v for images, _, metric, v in rows}
    assert value["copies", "share_nearer_train"] == 1.0 and value["copies", "nearest_train_distance"] < 0.01
    assert value["new", "share_nearer_train"] == pytest.approx(0.5, abs=0.07)
    assert value["new", "nearest_unseen_distance"] == pytest.approx(
        value["new", "nearest_train_distance"], rel=0.1
    )


def test_sets_are_compared_at_equal_sizes_only():
    sets = {"small": features(20, 0), "large": features(100, 1)}
    rows = distribution_distances(sets, features(90, 2), [20, 80], 3, 0)
    assert {row[:2] for row in rows} == {("small", 20), ("large", 20), ("large", 80)} and len(rows) == 3 * 6
    assert rows == distribution_distances(sets, features(90, 2), [20, 80], 3, 0)
    alone = distribution_distances({"large": sets["large"]}, features(90, 2), [20, 80], 3, 0)
    assert alone == [row for row in rows if row[0] == "large"], "no set's numbers depend on the others"


def test_halves_are_disjoint_and_differ_between_draws():
    rows = np.arange(101)
    (first, second), (other, _) = divide(rows, 0), divide(rows, 1)
    assert (len(first), len(second)) == (51, 50) and sorted([*first, *second]) == rows.tolist()
    assert set(first) != set(other)


def measured(num_draws, seed=0):
    sets = {"real": features(30, 0), "made": features(200, 1, shift=0.3)}
    return image_set_numbers("net", sets, features(300, 2), [30, 100], 3, num_draws, seed)


def number(table, images, size, metric):
    (row,) = table[
        (table["images"] == images) & (table["num_images"] == size) & (table["metric"] == metric)
    ].index
    return table.loc[row]


def test_numbers_are_means_over_draws_with_their_spread():
    """One draw of few images says little: real images have scored better than others of their kind."""
    one, many = measured(1), measured(12)
    assert set(one["features"]) == {"net"} and one["std"].isna().all() and (many["num_draws"] == 12).all()
    assert measured(12).equals(many) and not measured(12, seed=1).equals(many)
    row = number(many, "made", 30, "frechet_distance")
    single = [number(measured(1, seed), "made", 30, "frechet_distance")["value"] for seed in range(30)]
    assert row["std"] == pytest.approx(np.std(single), rel=0.6) and min(single) < row["value"] < max(single)
    assert abs(row["value"] - np.mean(single)) < 3 * row["std"] / np.sqrt(12)
    sizes = {images: set(of_set["num_images"]) for images, of_set in many.groupby("images")}
    assert sizes == {"real": {30}, "made": {30, 100, 200}, "unseen": {30, 100, 150}}, (
        "the last for neighbours"
    )


def test_the_table_has_a_line_per_set_and_size_in_order():
    lines = distances_table(measured(4)).splitlines()
    start = [line.split(" | ")[:3] for line in lines[2:]]
    assert start == [
        ["| net", "real", "30"],
        ["| net", "made", "30"],
        ["| net", "unseen", "30"],
        ["| net", "made", "100"],
        ["| net", "unseen", "100"],
    ]
    assert lines[0].startswith(
        "| features | images | N | frechet distance | kernel distance | precision | recall"
    )
    assert all(line.count(" ± ") == 6 for line in lines[2:])
    row = number(measured(4), "made", 100, "recall")
    assert f"{row['value']:.4f} ± {row['std']:.4f}" in lines[5]


def test_an_empty_table_has_its_header():
    assert distances_table(measured(1)[:0]).splitlines()[1:] == ["|" + "---|" * 9]


def test_calibration_error_by_hand():
    """Two bins of 15 hold images: confidence 0.9 right once of twice, 0.6 never right."""
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 0, 1])
    assert expected_calibration_error(labels, probabilities) == pytest.approx(100 * (0.8 + 0.6) / 3)
    assert expected_calibration_error(np.array([0, 1]), np.eye(2)) == 0.0
    assert expected_calibration_error(np.array([1, 0]), np.eye(2)) == 100.0
    apart = np.array([[0.61, 0.39], [0.69, 0.31]])  # in two of 15 bins, but in one of 10
    assert expected_calibration_error(np.array([0, 1]), apart) == pytest.approx(100 * (0.39 + 0.69) / 2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 5), st.integers(1, 20))
def test_calibration_error_equals_a_loop_over_bins(seed, n, classes, bins):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), n)
    labels = rng.integers(classes, size=n)
    total = 0.0
    for low in range(bins):
        confidence = probabilities.max(1)
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            accuracy = (probabilities.argmax(1) == labels)[inside].mean()
            total += inside.mean() * abs(accuracy - confidence[inside].mean())
    assert expected_calibration_error(labels, probabilities, bins) == pytest.approx(100 * total)
