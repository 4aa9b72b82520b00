"""Stability: minus the energy above hull, with guards against what a policy would find to exploit.

A potential answers for anything, and a hull with few phases calls everything stable. So nothing is paid (NaN, the
component's floor) for a crystal that the potential's gate refuses, that lies deeper below the hull than real ones do,
or whose chemical system has too few competing phases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.energy.catalogue import parse_theory
from latentite.energy.hull import Hull
from latentite.energy.parallel import RelaxHow, relax_many
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ElementReferences, Stability, stability
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.energy.table import find_table, table_hull, table_references

if TYPE_CHECKING:
    from pymatgen.core import Structure


class EnergyAboveHull:
    """Minus the energy above hull (eV/atom), from 0 on or below the hull to minus `worst`."""

    def __init__(
        self,
        potential: str = "chgnet",
        table: str | Sequence[str] = "mp_20",
        data_dir: str | None = None,
        theory: str | None = None,
        potential_theory: str | None = None,
        relax_steps: int = 0,
        worst: float = 1.0,
        deepest: float = 0.3,
        min_competing: int = 1,
        workers: int | None = 1,
        **arguments: Any,
    ) -> None:
        """Say how stability is judged; what that needs is read by `prepare`.

        Args:
            potential: see `energy.catalogue.potential_by_name`.
            table: data set or files with formation energies, for the hull and the element references.
            data_dir: folder of the data set that `table` names; None: it is looked for.
            theory: level of its formation energies, such as `PBE(+U), corrected`; known for the public data sets.
            potential_theory: the same of an ASE calculator's energies; the built-in potentials know theirs.
            relax_steps: of a relaxation; 0 takes the crystals as they are (single points).
            worst: eV/atom above hull from where on all are equally bad.
            deepest: eV/atom; further below the hull than this, nothing is paid.
            min_competing: compounds that must be known in a chemical system of two or more elements.
            workers: processes; None for all cores.
            arguments: of an ASE calculator.
        """
        for name, value in (("worst", worst), ("deepest", deepest)):
            if not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be above 0 eV/atom, got {value}")
        for name, count in (("relax_steps", relax_steps), ("min_competing", min_competing)):
            if count < 0:
                raise ValueError(f"{name} must be 0 or more, got {count}")
        settings = RelaxSettings(cell=RelaxCell.NONE, energy_only=True)
        if relax_steps:
            settings = RelaxSettings(max_steps=relax_steps)
        self.how = RelaxHow(
            potential=potential, arguments=arguments, theory=_level(potential_theory), settings=settings
        )
        self.table, self.data_dir = table, data_dir
        self.theory = _level(theory)
        self.worst, self.deepest, self.min_competing = worst, deepest, min_competing
        self.workers = workers
        self._judge: tuple[ElementReferences, Hull] | None = None

    def prepare(self) -> tuple[ElementReferences, Hull]:
        """The element references and the hull, read or made once; the first time takes minutes.

        Raises:
            ImportError: when the potential's package is not installed.
            FileNotFoundError: when there is no such table.
            ValueError: when it has no formation energies, or they are of another level of theory.
        """
        if self._judge is None:
            table = find_table(self.table, theory=self.theory, data_dir=self.data_dir)
            self._judge = table_references(table, self.how, workers=self.workers), table_hull(table)
        return self._judge

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        references, hull = self.prepare()
        relaxed = relax_many(batch.to_arrays(), self.how, workers=self.workers)
        crystals = replace(batch, properties={})
        rows = stability(crystals, relaxed.energy, references, hull)
        return torch.tensor(
            [self.reward(row, int(n)) for row, n in zip(rows, num_elements(batch), strict=True)]
        )

    def reward(self, row: Stability, elements: int) -> float:
        """The reward of one crystal; NaN where there is none."""
        above = row.energy_above_hull
        if above is None or above < -self.deepest:
            return math.nan
        if elements > 1 and row.num_competing < self.min_competing:
            return math.nan
        return -min(max(above, 0.0), self.worst)


def _level(text: str | None) -> TheoryLevel | None:
    return None if text is None else parse_theory(text)


def num_elements(batch: CrystalBatch) -> list[int]:
    """Different elements of each crystal."""
    return [len(set(crystal.atomic_numbers.tolist())) for crystal in batch.to_arrays()]
