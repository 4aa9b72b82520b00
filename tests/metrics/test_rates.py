"""Rates and their Wilson intervals, against scipy's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from latentite.metrics.rates import Rate


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_equals_scipys_wilson_interval(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    low, high = Rate(numerator=counts[0], denominator=counts[1]).interval
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_rate_of_none_says_so_instead_of_dividing_by_zero() -> None:
    nothing = Rate(numerator=0, denominator=0)
    assert math.isnan(nothing.value)
    assert nothing.to_plain()["rate"] is None
    assert nothing.interval == (0.0, 1.0)
    assert "0 of 0" in str(nothing)


def test_more_than_all_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        Rate(numerator=3, denominator=2)
