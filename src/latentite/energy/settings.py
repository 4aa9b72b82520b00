"""Settings of relaxation and limits for every potential; without torch, so that a command line can show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from latentite.base.options import option
from latentite.data.readers.checks import Limits

ENERGIES = "energies and relaxation"
"""Heading of these options in the help of a command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateLimits:
    """Bounds outside of which a crystal is not given to a potential."""

    geometry: Limits = field(default_factory=lambda: Limits(max_atoms=None, min_volume_per_atom=2.0))
    """Smallest distance (0.5 Å; H2 has 0.74) and volume per atom (2 to 1000 Å^3; diamond has 5.7)."""
    min_angle: float = 10.0
    """Degrees; every cell angle lies between this and 180 minus this."""
    min_plane_spacing: float = 0.5
    """Å between lattice planes; a thinner cell is flat, whatever its volume."""
    max_pairs: int = 200_000
    """Ordered neighbour pairs within the potential's cut-off, per crystal; 100 atoms of diamond have 16,000."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_angle < 60.0:
            raise ValueError(f"min_angle must be at least 0 and below 60 degrees, got {self.min_angle}")
        if self.max_pairs < 1:
            raise ValueError(f"max_pairs must be at least 1, got {self.max_pairs}")


class RelaxCell(StrEnum):
    """The part of the cell that may move besides the atoms."""

    FULL = "full"
    """Every component of the strain."""
    FIXED = "fixed"
    """Nothing."""
    NONE = "none"
    """Nothing, and the atoms stay as well: one evaluation of each crystal as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaxSettings:
    """End of a relaxation, and the amount that is done at once."""

    cell: RelaxCell = field(default=RelaxCell.FULL, metadata=option(flag="--relax-cell", group=ENERGIES))
    """Cell and atoms move, only atoms, or nothing (single points)."""
    fmax: float = field(default=0.05, metadata=option(group=ENERGIES))
    """Largest force at the end, eV/Å.

    No atom's is longer at convergence."""
    smax: float = 0.001
    """eV/Å^3 (0.16 GPa); no component of the stress is larger at convergence (when the cell may move). With 0.003 a
    soft alloy (InAgAu2) stopped 0.02 eV/atom above its minimum."""
    max_steps: int = field(default=500, metadata=option(flag="--relax-steps", group=ENERGIES))
    """Most steps per structure.

    A step is one evaluation of the potential."""
    patience: int = 100
    """Steps without a lower energy (by 1e-5 eV/atom) or smaller forces after which a crystal has stalled."""
    max_move: float = 0.2
    """Å; longest step, over all atoms and the cell together."""
    max_volume_ratio: float = 3.0
    """A volume this many times larger or smaller than at the start is an explosion."""
    max_atoms: int = 256
    """Most atoms in one call of the potential."""
    limits: GateLimits = field(default_factory=GateLimits)
    energy_only: bool = False
    """With `cell` none: forces and stresses are not computed and stay NaN, at about a third of the time."""

    def __post_init__(self) -> None:
        if self.cell not in list(RelaxCell):
            raise ValueError(f"cell must be one of {', '.join(RelaxCell)}, got {self.cell!r}")
        if self.energy_only and self.cell is not RelaxCell.NONE:
            raise ValueError(f"energy_only must go with cell=none, got cell={self.cell}")
        for name in ("fmax", "smax", "max_move"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_steps", "patience", "max_atoms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_volume_ratio > 1.0:
            raise ValueError(f"max_volume_ratio must be above 1, got {self.max_volume_ratio}")
