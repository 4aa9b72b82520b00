"""Vendi score: sets whose score is known, and the plain eigenvalues of the whole kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import eigvalsh

from latentite.metrics.distributions import vendi_score


def by_kernel(kernel: np.ndarray) -> float:
    values = eigvalsh(kernel / len(kernel))
    return math.exp(-sum(value * math.log(value) for value in values if value > 1e-14))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), num_features=st.integers(1, 12))
def test_cosine_score_is_that_of_the_whole_kernel_for_few_and_many_rows(
    seed: int, count: int, num_features: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, num_features))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert vendi_score(rows) == pytest.approx(by_kernel(unit @ unit.T), rel=1e-8)


def test_score_counts_what_is_different() -> None:
    """m groups of equal size, alike within and orthogonal between: the eigenvalues are m times 1/m."""
    rows = np.repeat(np.eye(5), 7, axis=0) * np.arange(1, 36)[:, None]
    assert vendi_score(rows) == pytest.approx(5)
    assert vendi_score(rows[:7]) == pytest.approx(1)


def test_unequal_groups_have_the_entropy_of_their_shares() -> None:
    rows = np.vstack([np.repeat([[1.0, 0.0]], 3, axis=0), [[0.0, 2.0]]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi_score(rows) == pytest.approx(expected)


def test_rows_of_zeros_resemble_nothing_and_rows_without_numbers_do_not_count() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [np.nan, 1.0]])
    assert vendi_score(rows) == pytest.approx(3)
    assert math.isnan(vendi_score(np.full((3, 2), np.nan)))
