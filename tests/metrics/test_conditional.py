"""Hit rates by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentite.metrics.rates import categorical_hit_rate, numeric_hit_rate, numeric_hits


def test_unknown_values_are_misses_of_the_strict_rate_and_left_out_of_the_other() -> None:
    found = numeric_hit_rate([1.0, 1.25, 1.5, math.nan], 1.0, absolute_tolerance=0.25)
    assert (found.strict.numerator, found.strict.denominator) == (2, 4)
    assert (found.known.numerator, found.known.denominator) == (2, 3)
    assert (found.unknown.numerator, found.unknown.denominator) == (1, 4)
    assert found.mean_absolute_error == pytest.approx((0 + 0.25 + 0.5) / 3)


def test_relative_and_absolute_tolerances_add() -> None:
    achieved, target = [103.0, 107.0, -104.0, -96.0], [100.0, 100.0, -100.0, -100.0]
    hits = numeric_hits(achieved, target, relative_tolerance=0.03)
    assert hits.tolist() == [True, False, False, False]
    hits = numeric_hits(achieved, target, relative_tolerance=0.03, absolute_tolerance=2)
    assert hits.tolist() == [True, False, True, True]


def test_integers_need_no_tolerance_and_infinity_is_unknown() -> None:
    found = numeric_hit_rate(np.array([4, 5, np.inf]), [4, 4, 4])
    assert (found.strict.numerator, found.unknown.numerator) == (1, 1)


def test_names_are_compared_one_to_one_or_all_to_one() -> None:
    found = categorical_hit_rate(["Fe-O", "O-Zn", None, math.nan], ["Fe-O", "Fe-O", "Fe-O", "O-Zn"])
    assert (found.strict.numerator, found.strict.denominator) == (1, 4)
    assert (found.known.numerator, found.known.denominator) == (1, 2)
    assert found.unknown.numerator == 2
    assert math.isnan(found.mean_absolute_error)
    assert categorical_hit_rate(["Fe-O", "Fe-O", "O"], "Fe-O").strict.numerator == 2
    assert categorical_hit_rate([225, 1, math.nan], 225).known.numerator == 1
    assert categorical_hit_rate(np.array([225.0, np.nan]), np.array([225, 225])).strict.numerator == 1


def test_nothing_gives_rates_of_nothing() -> None:
    assert numeric_hit_rate([], 1.0).strict.denominator == 0
    assert categorical_hit_rate([], "Fe").known.denominator == 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="relative tolerance"):
        numeric_hits([1.0], 1.0, relative_tolerance=-0.1)
    with pytest.raises(ValueError, match="absolute tolerance"):
        numeric_hits([1.0], 1.0, absolute_tolerance=math.nan)
    with pytest.raises(ValueError, match="every target must be a finite number"):
        numeric_hits([1.0], math.nan)
    with pytest.raises(ValueError, match="one target, or one per crystal"):
        numeric_hits([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one target per crystal, got 1 for 2"):
        categorical_hit_rate(["a", "b"], ["a"])
