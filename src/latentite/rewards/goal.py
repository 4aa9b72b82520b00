"""`Goal`: what is wanted of a number, and how far a value is from it. Properties of all kinds are rewarded by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """Exactly one of maximise, minimise, target and range; rewards are in units of `scale`."""

    maximise: bool = False
    minimise: bool = False
    target: float | None = None
    """Minus the distance from this value."""
    low: float | None = None
    """With `high` (or alone): minus the distance from the range, 0 inside."""
    high: float | None = None
    scale: float = 1.0
    """How large a difference, in the property's unit, is worth 1."""

    def __post_init__(self) -> None:
        is_range = self.low is not None or self.high is not None
        if self.maximise + self.minimise + (self.target is not None) + is_range != 1:
            raise ValueError(
                "a goal must be exactly one of maximise, minimise, target, and low/high, "
                f"got maximise={self.maximise}, minimise={self.minimise}, target={self.target}, "
                f"low={self.low}, high={self.high}"
            )
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if not (math.isfinite(self.scale) and self.scale > 0.0):
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def score(self, values: Float[Tensor, " crystal"]) -> Float[Tensor, " crystal"]:
        """Rewards of property values; NaN stays NaN."""
        if self.maximise:
            return values / self.scale
        if self.minimise:
            return -values / self.scale
        if self.target is not None:
            return -(values - self.target).abs() / self.scale
        return (values.clamp(self.low, self.high) - values).abs() / -self.scale
