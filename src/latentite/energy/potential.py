"""The protocol of potentials: many crystals in; energies, forces and stresses out, and a card that says what they mean.

Adapters (`chgnet.py`, `ase_calculator.py`) fulfil the protocol, `contract.py` checks that anyone's own does.
Callers ask `gate.py` first: a potential may take for granted that what it gets is a crystal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class TheoryLevel:
    """Level of theory of energies: numbers of two different levels do not mix."""

    functional: str
    """As its makers call it, for example `PBE(+U)` or `r2SCAN`."""
    is_corrected: bool | None
    """Empirical corrections (MP2020 and its like) are part of the energies; None where unknown."""

    def __str__(self) -> str:
        words = {True: "corrected", False: "uncorrected", None: "corrections unknown"}
        return f"{self.functional}, {words[self.is_corrected]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PotentialCard:
    """Name and version of a potential, so that a number can be traced to it."""

    name: str
    version: str
    sha256: str | None
    """Of the weights, 64 hexadecimal digits; None where there are none or where they are not known."""
    elements: frozenset[int]
    """Atomic numbers that it was made for."""
    theory: TheoryLevel
    cutoff: float
    """Å; an atom without a neighbour this close is outside of what the potential knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyForces:
    """Energies, forces and stresses of a batch; the numbers of a crystal that it could not compute are NaN."""

    energy: Float[Tensor, " crystal"]
    """eV per cell (not per atom)."""
    forces: Float[Tensor, "atom 3"]
    """eV/Å."""
    stress: Float[Tensor, "crystal 3 3"]
    """eV/Å^3, symmetric; positive when the crystal wants to shrink (dE/dstrain / volume, as in ASE)."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Position of each crystal that could not be computed, and why."""


class Potential(Protocol):
    """Anything with a card and `compute`."""

    @property
    def card(self) -> PotentialCard:
        """Its name and version, the elements it knows and the level of theory of its energies."""
        ...

    def compute(self, crystals: CrystalBatch) -> EnergyForces:
        """Energies, forces and stresses, in the dtype of the crystals' coordinates and on their device.

        The result for a crystal does not depend on the others in the batch, and the input is not changed.
        """
        ...


@runtime_checkable
class EnergyPotential(Potential, Protocol):
    """A potential that has a shorter way to energies alone; no potential needs to."""

    def compute_energy(self, crystals: CrystalBatch) -> EnergyForces:
        """The energies of `compute`, with NaN for forces and stresses (`without_derivatives`)."""
        ...


def single_points(potential: Potential, crystals: CrystalBatch) -> EnergyForces:
    """Energies alone, by the shorter way where the potential has one; NaN for forces and stresses either way."""
    if isinstance(potential, EnergyPotential):
        return potential.compute_energy(crystals)
    result = potential.compute(crystals)
    return without_derivatives(result.energy, crystals, failures=result.failures)


def without_derivatives(
    energy: Float[Tensor, " crystal"], crystals: CrystalBatch, *, failures: Mapping[int, str] | None = None
) -> EnergyForces:
    """Energies (eV per cell) with NaN for all that was not asked."""
    return EnergyForces(
        energy=energy,
        forces=torch.full_like(crystals.frac_coords, torch.nan),
        stress=torch.full_like(crystals.lattice, torch.nan),
        failures=failures or {},
    )
