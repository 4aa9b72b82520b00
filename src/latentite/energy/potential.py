"""The protocol of potentials: many crystals in; energies, forces and stresses out, and a card that says what they mean.

Adapters (`chgnet.py`, `catalogue.py`) fulfil the protocol, `check_potential` tells whether anyone's own does.
Callers ask `gate.py` first: a potential may take for granted that what it gets is a crystal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


def check_potential(
    potential: Potential,
    crystals: CrystalBatch,
    *,
    tolerance: float = 1e-4,
    step: float = 1e-3,
    seed: int = 0,
) -> None:
    """Checks shapes and finiteness, energies without forces, derivatives, extensivity, batching and order of atoms.

    Forces are compared with central differences of the energy along one random direction per crystal, stress
    with those along one random symmetric strain, times 1 / volume.

    Args:
        potential: what is checked.
        crystals: at least two that pass the gate, away from their minimum.
        tolerance: for energies (eV/atom), forces (eV/Å) and, times ten, for derivatives by differences.
        step: of the differences, Å along the direction (a unit vector) and strain.
        seed: of the directions and of the order of atoms.

    Raises:
        ValueError: naming what is broken and by how much.
    """
    if len(crystals) < 2:
        raise ValueError(f"check_potential needs at least two crystals, got {len(crystals)}")
    crystals = replace(crystals, frac_coords=crystals.frac_coords.double(), lattice=crystals.lattice.double())
    generator = torch.Generator().manual_seed(seed)
    before = (crystals.frac_coords.clone(), crystals.lattice.clone())
    result = potential.compute(crystals)
    if not (torch.equal(before[0], crystals.frac_coords) and torch.equal(before[1], crystals.lattice)):
        raise ValueError("compute must leave its input as it is, but it changed coordinates or cell")
    _check_shapes(result, crystals)
    per_atom = crystals.num_atoms
    alone = single_points(potential, crystals).energy
    _compare("energy per atom alone and with forces", alone / per_atom, result.energy / per_atom, tolerance)
    _check_alone(potential, crystals, result, tolerance)
    _check_order(potential, crystals, result, tolerance, generator)
    _check_supercell(potential, crystals, result, tolerance)
    _check_derivatives(potential, crystals, result, step=step, tolerance=10 * tolerance, generator=generator)


def _check_shapes(result: EnergyForces, crystals: CrystalBatch) -> None:
    expected = {
        "energy": (len(crystals),),
        "forces": (crystals.total_atoms, 3),
        "stress": (len(crystals), 3, 3),
    }
    for name, shape in expected.items():
        values = getattr(result, name)
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite for crystals that pass the gate, got NaN or infinity")
    _compare("stress and its transpose", result.stress, result.stress.transpose(1, 2), 1e-5)


def _check_alone(
    potential: Potential, crystals: CrystalBatch, result: EnergyForces, tolerance: float
) -> None:
    for position in range(len(crystals)):
        chosen = torch.tensor([position])
        alone = potential.compute(crystals.select(chosen))
        atoms = crystals.num_atoms[position]
        _compare(
            "energy per atom alone and in a batch",
            alone.energy / atoms,
            result.energy[chosen] / atoms,
            tolerance,
        )
        _compare(
            "forces alone and in a batch", alone.forces, result.forces[crystals.atoms_of(chosen)], tolerance
        )
        _compare("stress alone and in a batch", alone.stress, result.stress[chosen], tolerance)


def _check_order(
    potential: Potential,
    crystals: CrystalBatch,
    result: EnergyForces,
    tolerance: float,
    generator: torch.Generator,
) -> None:
    """Atoms of each crystal in another order."""
    keys = crystals.crystal_index + torch.rand(crystals.total_atoms, generator=generator, dtype=torch.float64)
    order = keys.argsort()
    other = potential.compute(
        replace(
            crystals,
            atomic_numbers=crystals.atomic_numbers[order],
            frac_coords=crystals.frac_coords[order],
        )
    )
    per_atom = crystals.num_atoms
    _compare(
        "energy per atom after reordering atoms", other.energy / per_atom, result.energy / per_atom, tolerance
    )
    _compare("forces after reordering atoms", other.forces, result.forces[order], tolerance)


def _check_supercell(
    potential: Potential, crystals: CrystalBatch, result: EnergyForces, tolerance: float
) -> None:
    """The cell doubled along its first vector: twice the energy, the same stress."""
    index = crystals.crystal_index
    frac = torch.cat([crystals.frac_coords, crystals.frac_coords + torch.tensor([1.0, 0.0, 0.0])])
    frac = frac / torch.tensor([2.0, 1.0, 1.0])
    order = torch.cat([index, index]).argsort(stable=True)
    doubled = CrystalBatch(
        atomic_numbers=crystals.atomic_numbers.repeat(2)[order],
        frac_coords=frac[order],
        lattice=crystals.lattice * torch.tensor([[2.0], [1.0], [1.0]]),
        num_atoms=crystals.num_atoms * 2,
    )
    other = potential.compute(doubled)
    _compare(
        "energy per atom in a supercell",
        other.energy / doubled.num_atoms,
        result.energy / crystals.num_atoms,
        tolerance,
    )
    _compare("stress in a supercell", other.stress, result.stress, tolerance)


def _check_derivatives(
    potential: Potential,
    crystals: CrystalBatch,
    result: EnergyForces,
    *,
    step: float,
    tolerance: float,
    generator: torch.Generator,
) -> None:
    index = crystals.crystal_index
    direction = torch.randn(crystals.total_atoms, 3, generator=generator, dtype=torch.float64)
    norm = torch.zeros(len(crystals), dtype=torch.float64).index_add(0, index, (direction**2).sum(-1)).sqrt()
    direction = direction / norm[index, None]
    frac_direction = torch.linalg.solve(
        crystals.lattice[index].transpose(1, 2), direction.unsqueeze(-1)
    ).squeeze(-1)

    def moved(sign: float) -> Tensor:
        coords = crystals.frac_coords + sign * step * frac_direction
        return potential.compute(replace(crystals, frac_coords=coords)).energy

    slope = (moved(1.0) - moved(-1.0)) / (2 * step)
    along = torch.zeros_like(slope).index_add(0, index, (result.forces * direction).sum(-1).to(slope))
    _compare("forces and -dE/dx by differences", along, -slope, tolerance)

    strain = torch.randn(len(crystals), 3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.transpose(1, 2)
    strain = strain / strain.flatten(1).norm(dim=1)[:, None, None]

    def strained(sign: float) -> Tensor:
        lattice = crystals.lattice @ (torch.eye(3, dtype=torch.float64) + sign * step * strain)
        return potential.compute(replace(crystals, lattice=lattice)).energy

    slope = (strained(1.0) - strained(-1.0)) / (2 * step) / crystals.volume
    _compare("stress and dE/dstrain / volume", (result.stress * strain).sum((1, 2)), slope, tolerance)


def _compare(
    what: str, first: Float[Tensor, " *shape"], second: Float[Tensor, " *shape"], tolerance: float
) -> None:
    worst = float((first.double() - second.double()).abs().max())
    if not worst <= tolerance:
        raise ValueError(f"{what} must agree within {tolerance:g}, they differ by {worst:.3g}")
