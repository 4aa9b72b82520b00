"""How often a conditional model gives what it was asked for, and by how much it misses.

A structure whose achieved value is not known (no potential ran, no space group was found, ...) is counted twice over:
as unknown, and as a miss in the strict rate, so that a model cannot gain by making structures that cannot be
measured. The other rate leaves the unknown ones out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from latentite.metrics.rates import Rate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class HitRate:
    """How many structures are what was asked for."""

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
