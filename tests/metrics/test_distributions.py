"""Distances of distributions against independent formulas and hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentite.metrics.distributions import entropy_bits, jensen_shannon_bits, wasserstein

values = st.lists(st.floats(-50, 50), min_size=1, max_size=30).map(np.array)


@settings(max_examples=50, deadline=None)
@given(first=values, second=values)
def test_wasserstein_is_the_area_between_the_cumulative_distributions(
    first: np.ndarray, second: np.ndarray
) -> None:
    grid = np.sort(np.concatenate([first, second]))
    below = [(side[None, :] <= grid[:-1, None]).mean(-1) for side in (first, second)]
    area = float((np.abs(below[0] - below[1]) * np.diff(grid)).sum())
    assert wasserstein(first, second) == pytest.approx(area, abs=1e-9)


def test_wasserstein_of_a_shift_is_the_shift_and_leaves_out_what_is_not_finite() -> None:
    base = np.random.default_rng(0).normal(size=100)
    assert wasserstein(np.append(base + 3, np.nan), base) == pytest.approx(3)
    assert math.isnan(wasserstein(np.array([np.inf]), base))


def test_entropy_in_bits() -> None:
    assert entropy_bits("abcdabcd") == pytest.approx(2)
    assert entropy_bits("aaaa") == 0
    assert math.isnan(entropy_bits([]))


def test_jensen_shannon_divergence_is_zero_for_equal_and_one_for_disjoint_names() -> None:
    assert jensen_shannon_bits("aab", "aabaab") == pytest.approx(0)
    assert jensen_shannon_bits([1, 2], [3]) == pytest.approx(1)
    # By hand: shares (1, 0) and (1/2, 1/2): H(3/4, 1/4) - 1/2.
    assert jensen_shannon_bits("a", "ab") == pytest.approx(0.8112781 - 0.5)
    assert math.isnan(jensen_shannon_bits("a", ""))
