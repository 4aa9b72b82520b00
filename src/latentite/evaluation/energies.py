"""Energies of an evaluation: as submitted and relaxed side by side, each gap with its reason.

Every structure has a number or a failure: what the gate refuses, what explodes, stalls or uses up its steps on the
way to its minimum has no relaxed number, and what the hull does not know has no energy above it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.base.files import replacing
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import SYMBOLS
from latentite.energy.hull import Hull
from latentite.energy.parallel import Kept, RelaxHow, double_batch, relax_many
from latentite.energy.potential import PotentialCard
from latentite.energy.references import ElementReferences, Stability, check_same_theory, stability
from latentite.energy.relax import Relaxed, RelaxStatus, displacement_rmsd, volume_change
from latentite.energy.settings import RelaxCell
from latentite.evaluation.measure import Cell
from latentite.evaluation.store import ResultStore, namespace
from latentite.formulas import chemical_system, compositions

VERSION = 1
"""Of what is kept; raised whenever the same settings give other values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Energies:
    """One entry per structure, in order."""

    card: PotentialCard
    how: RelaxHow
    relaxed: Relaxed
    """Geometries, energies, forces and stresses; of failures the last ones that could be judged."""
    raw_stability: tuple[Stability, ...] | None
    """Of the structures as they came; None without a hull."""
    stability: tuple[Stability, ...] | None
    """Of the converged ones; None without a hull or without relaxation."""
    rmsd: Float[Tensor, " crystal"]
    """Å between a structure and its relaxed form, see `displacement_rmsd`; NaN where not converged."""
    volume_change: Float[Tensor, " crystal"]
    """Volume of the relaxed form over that before, minus 1; NaN likewise."""
    unknown_systems: dict[str, int]
    """Chemical systems in which the hull knows no compound or lacks an element, and structures in each."""
    unknown_elements: dict[str, int]
    """Elements without reference, and structures that contain them."""

    @property
    def is_relaxation(self) -> bool:
        """True when anything may move; false for single points."""
        return self.how.settings.cell != RelaxCell.NONE

    @property
    def is_converged(self) -> Bool[Tensor, " crystal"]:
        """True for structures whose relaxation came to its end."""
        return torch.tensor(
            [status is RelaxStatus.CONVERGED for status in self.relaxed.status], dtype=torch.bool
        )

    @property
    def counts(self) -> dict[str, int]:
        """Structures by how they ended; they add up to all."""
        return dict(Counter(status.value for status in self.relaxed.status))

    @property
    def failures(self) -> list[tuple[int, str, str]]:
        """Position, metric and reason of every gap."""
        gaps: list[tuple[int, str, str]] = []
        has_energy = self.relaxed.start_energy.isfinite().tolist()
        for position, reason in enumerate(self.relaxed.reasons):
            if reason is not None:
                gaps.append((position, "relax" if has_energy[position] else "energy", reason))
        for position, row in enumerate(self.raw_stability or ()):
            if row.reason is not None and has_energy[position]:
                gaps.append((position, "energy_above_hull", row.reason))
        return sorted(gaps)

    def columns(self) -> dict[str, list[Cell]]:
        """The columns of the table, empty where there is no number; energies in eV/atom, forces in eV/Å."""
        num_atoms = self.relaxed.crystals.num_atoms
        columns: dict[str, list[Cell]] = {
            "energy_status": [status.value for status in self.relaxed.status],
            "energy": _cells(self.relaxed.start_energy / num_atoms),
        }
        if self.raw_stability is not None:
            columns["formation_energy"] = [row.formation_energy for row in self.raw_stability]
            columns["energy_above_hull"] = [row.energy_above_hull for row in self.raw_stability]
            columns["num_competing"] = [row.num_competing for row in self.raw_stability]
        if not self.is_relaxation:
            return columns | {"max_force": _cells(self.relaxed.max_force)}
        energy = torch.where(self.is_converged, self.relaxed.energy, torch.nan)
        columns["relaxed_energy"] = _cells(energy / num_atoms)
        if self.stability is not None:
            columns["relaxed_formation_energy"] = [row.formation_energy for row in self.stability]
            columns["relaxed_energy_above_hull"] = [row.energy_above_hull for row in self.stability]
        return columns | {
            "relax_converged": self.is_converged.tolist(),
            "relax_steps": self.relaxed.steps.tolist(),
            "relaxed_max_force": _cells(self.relaxed.max_force),
            "rmsd_to_relaxed": _cells(self.rmsd),
            "relaxed_volume_change": _cells(self.volume_change),
        }


def measure_energies(
    crystals: Sequence[CrystalArrays],
    *,
    how: RelaxHow,
    hull: Hull | None = None,
    references: ElementReferences | None = None,
    allow_mixed_theory: bool = False,
    hashes: Sequence[str] = (),
    kept: Kept | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Energies:
    """Energies of structures as they are and, unless `how` says otherwise, relaxed.

    Args:
        crystals: any numbers at all.
        how: potential, and what may move.
        hull: what competes; None for no energies above hull.
        references: between this potential and the table of the hull (`table_references`).
        allow_mixed_theory: also where levels of theory differ or are unknown.
        hashes: `structure_hash` of each, for `kept`.
        kept: `energy_store(how)`; None computes everything.
        workers: processes of one thread; None for all cores. They do not change the result.
        advance: told of how many more structures the result is known.

    Raises:
        ImportError: when the potential's package is not installed.
        ValueError: for an unknown potential, a hull without references, or levels of theory that do not fit.
    """
    card = how.load().card
    if hull is not None:
        if references is None:
            raise ValueError(
                "energies above hull need element references between potential and table, got none"
            )
        _check_levels(card, references, hull, allow_mixed_theory=allow_mixed_theory)
    batch = double_batch(crystals)
    relaxed = relax_many(crystals, how, keys=hashes, kept=kept, workers=workers, advance=advance)
    converged = torch.tensor([status is RelaxStatus.CONVERGED for status in relaxed.status], dtype=torch.bool)

    def judged(energy: Tensor) -> tuple[Stability, ...] | None:
        if hull is None or references is None:
            return None
        return tuple(stability(batch, energy, references, hull, allow_mixed_theory=allow_mixed_theory))

    final = torch.where(converged, relaxed.energy, torch.nan)
    systems, elements = _unknown(crystals, hull, references)
    return Energies(
        card=card,
        how=how,
        relaxed=relaxed,
        raw_stability=judged(relaxed.start_energy),
        stability=judged(final) if how.settings.cell != RelaxCell.NONE else None,
        rmsd=torch.where(converged, displacement_rmsd(batch, relaxed.crystals), torch.nan),
        volume_change=torch.where(converged, volume_change(batch, relaxed.crystals), torch.nan),
        unknown_systems=systems,
        unknown_elements=elements,
    )


def energy_store(how: RelaxHow) -> ResultStore | None:
    """The store of this potential and these settings; None where nobody can tell which potential
    it is (a calculator without version or weights), so that nothing may be kept."""
    identity = how.identity()
    return None if identity is None else ResultStore.open(namespace("energy", VERSION, identity))


def _check_levels(
    card: PotentialCard, references: ElementReferences, hull: Hull, *, allow_mixed_theory: bool
) -> None:
    """Before any work, not after hours of it."""
    if references.theory != card.theory:
        raise ValueError(
            f"element references were fitted to energies of {references.theory or 'an unknown level of theory'}, "
            f"but {card.name} predicts {card.theory}; fit them to this potential"
        )
    check_same_theory(references.table_theory, hull.theory, allow_mixed_theory=allow_mixed_theory)


def _unknown(
    crystals: Sequence[CrystalArrays], hull: Hull | None, references: ElementReferences | None
) -> tuple[dict[str, int], dict[str, int]]:
    """Structures by chemical system that the hull does not know, and by element without reference."""
    systems: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    if hull is None or references is None:
        return {}, {}
    for composition in compositions(double_batch(crystals)):
        if hull.query(composition).energy is None:
            systems[chemical_system(composition)] += 1
        elements.update(SYMBOLS[number - 1] for number, _ in composition if number not in references.elements)
    return dict(systems.most_common()), dict(elements.most_common())


def _cells(values: Tensor) -> list[Cell]:
    return [value if value - value == 0.0 else None for value in values.tolist()]


def write_relaxed(path: str | Path, energies: Energies, ids: Sequence[str]) -> None:
    """All structures in order, one frame each, atomically; `ase.io.read(path, index=":")` reads them.

    The info of a frame has `id`, `status`, `steps`, `converged` and `potential`, and `reason` for a failure. A
    failure keeps the last geometry that the potential could judge, with that one's energy, forces and stress;
    one that it never judged stands as it came, without numbers.

    Args:
        path: of the file.
        energies: of `measure_energies`.
        ids: of each structure.

    Raises:
        ValueError: when there is not one id per structure.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io.extxyz import write_extxyz

    relaxed = energies.relaxed
    if len(ids) != len(relaxed.crystals):
        raise ValueError(f"one id per structure is needed, got {len(ids)} for {len(relaxed.crystals)}")
    forces = relaxed.forces.split(relaxed.crystals.num_atoms.tolist())
    is_judged = relaxed.is_judged.tolist()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for k, atoms in enumerate(relaxed.crystals.to_atoms()):
            status, reason = relaxed.status[k], relaxed.reasons[k]
            atoms.info = {
                "id": ids[k],
                "status": status.value,
                "steps": int(relaxed.steps[k]),
                "converged": status is RelaxStatus.CONVERGED,
                "potential": energies.card.name,
            }
            if reason is not None:
                atoms.info["reason"] = " ".join(reason.replace('"', "'").split())
            if is_judged[k]:
                atoms.calc = SinglePointCalculator(
                    atoms,
                    energy=float(relaxed.energy[k]),
                    forces=forces[k].numpy(),
                    stress=relaxed.stress[k].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],  # as Voigt
                )
            write_extxyz(file, [atoms])
