"""Rates that carry their numerator, their denominator and an interval, and rates of hits of what was asked for.

In a rate of hits a structure whose value is not known (no potential ran, no space group was found, ...) is counted
twice over: as unknown, and as a miss in the strict rate, so that a model cannot gain by making structures that cannot
be measured. The other rate leaves the unknown ones out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: two-sided 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share with its numerator and denominator."""

    numerator: int
    denominator: int

    def __post_init__(self) -> None:
        if not 0 <= self.numerator <= self.denominator:
            raise ValueError(
                f"a rate must be n of N with 0 <= n <= N, got {self.numerator} of {self.denominator}"
            )

    @property
    def value(self) -> float:
        """Share from 0 to 1; NaN of none."""
        return self.numerator / self.denominator if self.denominator else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % score interval (Wilson 1927): inside [0, 1] and sensible at 0 of N; all of [0, 1] for none."""
        total, share = self.denominator, self.value
        if total == 0:
            return 0.0, 1.0
        centre = (share + Z_95**2 / (2 * total)) / (1 + Z_95**2 / total)
        half = (
            Z_95 / (1 + Z_95**2 / total) * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
        )
        low = 0.0 if self.numerator == 0 else centre - half
        high = 1.0 if self.numerator == total else centre + half
        return low, high

    def to_plain(self) -> dict[str, float | int | None]:
        """For JSON: numerator, denominator, rate (null of none) and the ends of the interval."""
        low, high = self.interval
        return {
            "numerator": self.numerator,
            "denominator": self.denominator,
            "rate": self.value if self.denominator else None,
            "low_95": low,
            "high_95": high,
        }

    def __str__(self) -> str:
        if self.denominator == 0:
            return "- (0 of 0)"
        low, high = self.interval
        return (
            f"{100 * self.value:.1f} % ({self.numerator} of {self.denominator}; "
            f"95 %: {100 * low:.1f} to {100 * high:.1f})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The difference of two rates, with its interval."""

    value: float
    """From -1 to 1; NaN when a rate is of none."""
    low: float
    high: float
    """Ends of the 95 % interval."""

    @property
    def is_clear(self) -> bool:
        """True when the interval excludes 0."""
        return self.low > 0.0 or self.high < 0.0

    def to_plain(self) -> dict[str, float | bool | None]:
        """For JSON; the value is null when there is none."""
        value = None if math.isnan(self.value) else self.value
        return {"difference": value, "low_95": self.low, "high_95": self.high, "excludes_0": self.is_clear}


def difference(first: Rate, second: Rate) -> Difference:
    """`first - second` with its 95 % interval, for rates of two independent sets.

    The hybrid score interval of Newcombe 1998, Stat. Med. 17, 873, method 10, from the two Wilson intervals: inside
    [-1, 1], and sensible at 0 of N. All of [-1, 1] when a rate is of none.
    """
    if not (first.denominator and second.denominator):
        return Difference(value=math.nan, low=-1.0, high=1.0)
    (low_1, high_1), (low_2, high_2) = first.interval, second.interval
    value = first.value - second.value
    below = math.hypot(first.value - low_1, high_2 - second.value)
    above = math.hypot(high_1 - first.value, second.value - low_2)
    return Difference(value=value, low=value - below, high=value + above)


@dataclass(frozen=True, kw_only=True, slots=True)
class HitRate:
    """Rates of structures that are what was asked for."""

    strict: Rate
    """Hits among all structures; an unknown value is a miss."""
    known: Rate
    """Hits among structures whose value is known."""
    unknown: Rate
    """Structures whose value is not known, among all."""
    mean_absolute_error: float
    """Mean of |achieved - target| over known values, in the unit of the property; NaN for names and of none."""


def numeric_hits(
    achieved: ArrayLike,
    target: ArrayLike,
    *,
    absolute_tolerance: float = 0.0,
    relative_tolerance: float = 0.0,
) -> Bool[np.ndarray, " crystal"]:
    """`|achieved - target| <= absolute + relative * |target|`, per crystal; False where a value is not finite.

    Args:
        achieved: one number per crystal, NaN where it is not known.
        target: one for all, or one per crystal.
        absolute_tolerance: in the unit of the property.
        relative_tolerance: share of the target, 0.05 for 5 %.

    Raises:
        ValueError: for a negative tolerance or a target that is not finite.
    """
    for name, value in (("absolute", absolute_tolerance), ("relative", relative_tolerance)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"the {name} tolerance must be a number of at least 0, got {value}")
    values, targets = _numbers(achieved, target)
    with np.errstate(invalid="ignore"):
        return np.abs(values - targets) <= absolute_tolerance + relative_tolerance * np.abs(targets)


def numeric_hit_rate(
    achieved: ArrayLike,
    target: ArrayLike,
    *,
    absolute_tolerance: float = 0.0,
    relative_tolerance: float = 0.0,
) -> HitRate:
    """Rates of `numeric_hits`, and the mean absolute error. Arguments and errors are those of `numeric_hits`.

    Numbers of atoms are integers and need no tolerance.
    """
    hits = numeric_hits(
        achieved, target, absolute_tolerance=absolute_tolerance, relative_tolerance=relative_tolerance
    )
    values, targets = _numbers(achieved, target)
    is_known = np.isfinite(values)
    errors = np.abs(values - targets)[is_known]
    return _rates(hits, is_known, float(errors.mean()) if len(errors) else math.nan)


def categorical_hit_rate(
    achieved: Sequence[Hashable | None], target: Sequence[Hashable] | Hashable
) -> HitRate:
    """Rate of equal names: chemical system, reduced formula, space group, ...

    Args:
        achieved: one per crystal, in the same form as the target (`Fe-Li-O`, as `data/properties.py` writes it);
            None or NaN where it is not known.
        target: a list or array with one per crystal, or one for all.

    Raises:
        ValueError: when there are as many targets as neither one nor the crystals.
    """
    if isinstance(target, (list, np.ndarray)):
        if len(target) != len(achieved):
            raise ValueError(f"there must be one target per crystal, got {len(target)} for {len(achieved)}")
        targets: Sequence[Hashable] = list(target)
    else:
        targets = [target] * len(achieved)
    pairs = list(zip(achieved, targets, strict=True))
    # NaN is the one value that is not equal to itself.
    is_known = np.array([value is not None and value == value for value, _ in pairs], dtype=bool)
    hits = np.array([value == wanted for value, wanted in pairs], dtype=bool)
    return _rates(hits & is_known, is_known, math.nan)


def _numbers(achieved: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values: Float[np.ndarray, " crystal"] = np.atleast_1d(np.asarray(achieved, dtype=np.float64))
    targets = np.asarray(target, dtype=np.float64)
    if not np.isfinite(targets).all():
        raise ValueError(
            "every target must be a finite number; leave out the crystals that were asked nothing"
        )
    if targets.ndim and targets.shape != values.shape:
        raise ValueError(
            f"there must be one target, or one per crystal, got {targets.shape} for {values.shape}"
        )
    return values, targets


def _rates(hits: np.ndarray, is_known: np.ndarray, error: float) -> HitRate:
    total, known = len(hits), int(is_known.sum())
    return HitRate(
        strict=Rate(numerator=int(hits.sum()), denominator=total),
        known=Rate(numerator=int(hits.sum()), denominator=known),
        unknown=Rate(numerator=total - known, denominator=total),
        mean_absolute_error=error,
    )
