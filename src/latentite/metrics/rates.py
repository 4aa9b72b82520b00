"""Rates that carry their numerator, their denominator and an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: two-sided 95 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How many of how many."""

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
    """How much one rate is above another."""

    value: float
    """From -1 to 1; NaN when a rate is of none."""
    low: float
    high: float
    """Ends of the 95 % interval."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes no difference at all."""
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
