"""What is asked of energies: which potential, what may move, what competes. Checked before anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentite.energy.catalogue import potential_by_name
from latentite.energy.hull import hull_from_json
from latentite.energy.parallel import RelaxHow
from latentite.energy.potential import TheoryLevel
from latentite.energy.relax import RelaxCell, RelaxSettings
from latentite.energy.table import NoEnergiesError, find_table, read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyOptions:
    """Which potential judges, what it may move, and what a structure competes with."""

    potential: str
    """`chgnet`, `7net-0` or `package.module:Class` of an ASE calculator."""
    cell: RelaxCell = RelaxCell.FULL
    """What relaxation moves; `none` judges the structures as they are."""
    max_steps: int = 500
    fmax: float = 0.05
    """eV/Å."""
    hull: tuple[str | Path, ...] = ()
    """Tables with formation energies, of which every split is taken; without any nothing is called stable."""
    hull_theory: TheoryLevel | None = None
    """Level of those formation energies; known for the data sets that have a name."""
    phase_diagram: Path | None = None
    """JSON file with the hull to take instead (`hull_from_json`); the element references still need `hull`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of an ASE calculator."""
    theory: TheoryLevel | None = None
    """Of an ASE calculator's energies."""
    allow_mixed_theory: bool = False

    @property
    def name(self) -> str:
        """In a few words."""
        return f"{self.potential}, {'single points' if self.cell is RelaxCell.NONE else f'cell {self.cell.value}'}"

    def how(self) -> RelaxHow:
        """The same in the words of `energy/`."""
        return RelaxHow(
            potential=self.potential,
            arguments=self.arguments,
            theory=self.theory,
            settings=RelaxSettings(cell=self.cell, fmax=self.fmax, max_steps=self.max_steps),
        )

    def check(self) -> None:
        """Before anything heavy: is there such a potential and such a table?

        Raises:
            FileNotFoundError: when there is no such table.
            ImportError: when the potential's package is not installed.
            ValueError: for an unknown potential, or settings that cannot be.
        """
        potential_by_name(self.potential, arguments=self.arguments, theory=self.theory)
        self.how()
        if self.hull:
            find_table(self.hull, theory=self.hull_theory)
        if self.phase_diagram is not None:
            if not self.hull:
                raise ValueError(
                    "--phase-diagram must be given together with --hull, a table with formation energies of the same "
                    "level of theory, for the element references"
                )
            hull_from_json(self.phase_diagram, theory=self.hull_theory)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for the record of a run."""
        return {
            "potential": self.potential,
            "cell": self.cell.value,
            "max_steps": self.max_steps,
            "fmax": self.fmax,
            "hull": list(map(str, self.hull)),
            "phase_diagram": None if self.phase_diagram is None else str(self.phase_diagram),
            "hull_theory": None if self.hull_theory is None else str(self.hull_theory),
            "arguments": dict(self.arguments),
            "theory": None if self.theory is None else str(self.theory),
            "allow_mixed_theory": self.allow_mixed_theory,
        }


def reference_hull(reference: object) -> tuple[str | Path, ...]:
    """The reference, as what structures compete with, where it is a table with formation energies.

    Raises:
        ValueError: when it has formation energies of which one is no number.
    """
    if not isinstance(reference, str | Path):
        return ()
    try:
        read_rows(find_table(reference))
    except (FileNotFoundError, NoEnergiesError):
        return ()
    return (reference,)
