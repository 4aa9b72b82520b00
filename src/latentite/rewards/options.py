"""What may stand beside a component's own arguments, and what that makes of its raw values.

The only place where rewards are scaled; `rl/objective.py` is the only one where crystals are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Normalize(StrEnum):
    """How a component is scaled over the crystals of a rollout."""

    NONE = "none"
    MIN_MAX = "min_max"
    """To 0 to 1."""
    STANDARD = "standard"
    """To mean 0 and standard deviation 1."""


@dataclass(kw_only=True, slots=True)
class ComponentOptions:
    """What may stand beside a component's `_target_` and its own arguments."""

    weight: float = 1.0
    """0: only for the log."""
    normalize: Normalize = Normalize.NONE
    floor: float | None = None
    """No raw value counts as less, and a crystal that fails gets it; null: it gets the lowest of the rollout."""
    cap: float | None = None
    """No raw value counts as more."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be a finite number, got {self.weight}")
        if self.floor is not None and self.cap is not None and not self.floor < self.cap:
            raise ValueError(f"floor must be below cap, got {self.floor} and {self.cap}")


def normalise(raw: Float[Tensor, " crystal"], options: ComponentOptions) -> Float[Tensor, " crystal"]:
    """Floor, cap and scale; failures (NaN) get the floor. All finite."""
    known = raw[~raw.isnan()]
    lowest = float(known.min()) if len(known) else 0.0
    values = raw.nan_to_num(nan=lowest if options.floor is None else options.floor)
    values = (
        values.clamp(options.floor, options.cap) if (options.floor, options.cap) != (None, None) else values
    )
    if options.normalize is Normalize.NONE or not len(values):
        return values
    low = values.min() if options.normalize is Normalize.MIN_MAX else values.mean()
    spread = values.max() - low if options.normalize is Normalize.MIN_MAX else values.std(correction=0)
    return (values - low) / spread if spread > 1e-12 else torch.zeros_like(values)
