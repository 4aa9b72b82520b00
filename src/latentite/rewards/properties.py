"""Rewards of what can be read off a crystal: density, volume, elements, symmetry, supply risk; and the goals for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentite.base.plain import from_plain
from latentite.crystal import CrystalBatch
from latentite.data.properties import derive
from latentite.formulas import reduced_composition
from latentite.metrics.composition import supply_risk
from latentite.metrics.geometry import space_groups

if TYPE_CHECKING:
    from pymatgen.core import Structure


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


NUMBERS = ("density", "volume_per_atom", "num_elements", "electronegativity_difference")
"""g/cm^3, Å^3, count, Pauling's scale."""

CRYSTAL_SYSTEMS = (3, 16, 75, 143, 168, 195)
"""First space groups of the monoclinic, orthorhombic, tetragonal, trigonal, hexagonal and cubic systems."""


class PropertyReward:
    """A property that follows from the crystal alone, one of `NUMBERS`."""

    def __init__(self, property: str, **goal: Any) -> None:
        """Say which and what is wanted of it: the arguments of `Goal`.

        Raises:
            ValueError: for an unknown property or no goal.
        """
        if property not in NUMBERS:
            raise ValueError(f"property must be one of {', '.join(NUMBERS)}, got {property!r}")
        self.property = property
        self.goal = from_plain(Goal, goal)

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        values = derive(self.property, batch)
        assert isinstance(values, Tensor)
        return self.goal.score(values)


class SupplyRiskReward:
    """Minus the Herfindahl-Hirschman index of the elements (Gaultois et al. 2013), 0 to -1; NaN without data."""

    def __init__(self, market: str = "production") -> None:
        """Choose `production` or `reserves`.

        Raises:
            ValueError: for another market.
        """
        if market not in ("production", "reserves"):
            raise ValueError(f"market must be production or reserves, got {market!r}")
        self.place = 0 if market == "production" else 1

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in batch.to_arrays()]
        risks = [supply_risk(composition)[self.place] for composition in compositions]
        return -torch.tensor(risks, dtype=torch.float64) / 10_000.0


class SymmetryReward:
    """Crystal system at a tolerance, from 0 (triclinic) in sixths to 1 (cubic); NaN where the search fails."""

    def __init__(self, symprec: float = 0.1) -> None:
        """Take the tolerance, Å."""
        if not symprec > 0.0:
            raise ValueError(f"symprec must be above 0 Å, got {symprec}")
        self.symprec = symprec

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        groups = space_groups(batch.to_arrays(), symprecs=(self.symprec,), workers=1)[:, 0]
        systems = np.searchsorted(CRYSTAL_SYSTEMS, groups, side="right") / len(CRYSTAL_SYSTEMS)
        return torch.from_numpy(np.where(np.isnan(groups), np.nan, systems))
