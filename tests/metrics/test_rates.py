"""Rates and their Wilson intervals, against scipy's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from latentite.metrics.rates import Rate, difference


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


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_differences_have_the_published_intervals(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    one, other = (Rate(numerator=n, denominator=total) for n, total in (first, second))
    found = difference(one, other)
    assert found.value == pytest.approx(one.value - other.value)
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert found.is_clear == (low > 0)
    turned = difference(other, one)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_a_difference_lies_in_its_interval_and_the_interval_in_the_possible(
    first: int, second: int, data: st.DataObject
) -> None:
    one = Rate(numerator=data.draw(st.integers(0, first)), denominator=first)
    other = Rate(numerator=data.draw(st.integers(0, second)), denominator=second)
    found = difference(one, other)
    assert -1 - 1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12


def test_a_difference_from_a_rate_of_none_is_unknown() -> None:
    found = difference(Rate(numerator=1, denominator=2), Rate(numerator=0, denominator=0))
    assert not found.is_clear
    assert found.to_plain()["difference"] is None
