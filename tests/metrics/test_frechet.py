"""Fréchet distance against scipy's matrix square root and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from latentite.metrics.distributions import fit_gaussian, frechet_distance, frechet_diversity


def by_sqrtm(first: np.ndarray, second: np.ndarray) -> float:
    covariances = [np.cov(side, rowvar=False) for side in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    shift = ((first.mean(0) - second.mean(0)) ** 2).sum()
    return float(shift + np.trace(covariances[0] + covariances[1] - 2 * root))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return frechet_distance(fit_gaussian(first), fit_gaussian(second))


@given(seed=st.integers(0, 2**32 - 1), num_features=st.integers(2, 8))
def test_distance_equals_scipys_matrix_square_root(seed: int, num_features: int) -> None:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(2, num_features, num_features))
    first = rng.normal(size=(60, num_features)) @ mixing[0] + rng.normal(size=num_features)
    second = rng.normal(size=(50, num_features)) @ mixing[1]
    assert distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-6, abs=1e-6)


def test_one_dimension_has_a_closed_form() -> None:
    """F = (m1 - m2)^2 + (s1 - s2)^2."""
    first, second = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [11.0]])
    expected = (1 - 7) ** 2 + (np.sqrt(2) - np.sqrt(12)) ** 2
    assert distance(first, second) == pytest.approx(expected)


def test_fewer_rows_than_features_are_no_trouble() -> None:
    """Covariances of rank 4 and 6 in 50 dimensions, where C1 C2 has 44 eigenvalues that are 0: scaling all features by
    3 about the mean has the closed form (3 - 1)^2 tr C, and a set is at distance 0 from itself."""
    rng = np.random.default_rng(0)
    for count in (5, 7):
        features = rng.normal(size=(count, 50))
        centred = features - features.mean(0)
        trace = (centred**2).sum() / (count - 1)
        assert distance(features, features.mean(0) + 3 * centred) == pytest.approx(4 * trace)
        assert distance(features, features) == pytest.approx(0, abs=1e-9)


def test_distance_does_not_depend_on_sides_order_or_rotation_of_the_features() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) + 0.3
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected = distance(first, second)
    assert distance(second, first) == pytest.approx(expected)
    assert distance(first[::-1] @ rotation, second @ rotation) == pytest.approx(expected)


def test_rows_without_features_are_left_out_and_too_few_refused() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    assert distance(np.vstack([first, [np.nan, 0, 0]]), second) == distance(first, second)
    with pytest.raises(ValueError, match="at least two rows"):
        fit_gaussian(np.array([[1.0, 2.0], [np.inf, 0.0]]))
    with pytest.raises(ValueError, match="equally many features, got 3 and 2"):
        distance(first, second[:, :2])


def test_diversity_is_one_at_distance_zero_and_falls() -> None:
    assert frechet_diversity(0.0) == 1.0
    assert frechet_diversity(3.0) == 0.25
