"""What a relaxation is asked and what it leaves: settings, ways to end, results."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.energy.gate import GateLimits
from latentite.nn.segment import segment_max


class RelaxCell(StrEnum):
    """What may move besides the atoms."""

    FULL = "full"
    """Every component of the strain."""
    FIXED = "fixed"
    """Nothing."""
    NONE = "none"
    """Nothing, and the atoms stay as well: one evaluation of each crystal as it is."""


class RelaxStatus(StrEnum):
    """How a relaxation ended."""

    CONVERGED = "converged"
    SINGLE_POINT = "single_point"
    """One evaluation, and no more was asked."""
    REFUSED = "refused"
    """The gate let it not even begin."""
    EXPLODED = "exploded"
    """On its way it became something that the gate refuses, or its volume left the bounds."""
    STALLED = "stalled"
    """No progress for `patience` steps."""
    STEP_LIMIT = "step_limit"
    """Not converged within `max_steps`."""
    POTENTIAL_FAILED = "potential_failed"
    """The potential gave no finite numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaxSettings:
    """When a relaxation ends, and how much of it is done at once."""

    cell: RelaxCell = RelaxCell.FULL
    fmax: float = 0.05
    """eV/Å; no atom's force is longer at convergence."""
    smax: float = 0.001
    """eV/Å^3 (0.16 GPa); no component of the stress is larger at convergence (when the cell may move). With 0.003 a
    soft alloy (InAgAu2) stopped 0.02 eV/atom above its minimum."""
    max_steps: int = 500
    """Per crystal; a step is one evaluation of the potential."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxed:
    """Crystals after relaxation, in the order in which they came.

    The numbers of a crystal that failed are those of the last geometry that the potential could judge; one that
    it could never judge stands as it came, with NaN.
    """

    crystals: CrystalBatch
    """float64."""
    start_energy: Float[Tensor, " crystal"]
    """eV per cell."""
    energy: Float[Tensor, " crystal"]
    """eV per cell."""
    forces: Float[Tensor, "atom 3"]
    """eV/Å; NaN where energies alone were asked for."""
    stress: Float[Tensor, "crystal 3 3"]
    """eV/Å^3; likewise."""
    steps: Int[Tensor, " crystal"]
    """Evaluations of the potential."""
    status: tuple[RelaxStatus, ...]
    reasons: tuple[str | None, ...]
    """A sentence for each that has neither converged nor was to be evaluated once only."""

    @property
    def is_judged(self) -> Bool[Tensor, " crystal"]:
        """Whether the numbers of a crystal belong to its geometry (even where the relaxation failed)."""
        return self.energy.isfinite()

    @property
    def max_force(self) -> Float[Tensor, " crystal"]:
        """eV/Å; length of the longest force on an atom of each crystal, NaN where there is none."""
        lengths = self.forces.norm(dim=1)
        return segment_max(lengths, self.crystals.crystal_index, len(self.crystals))
