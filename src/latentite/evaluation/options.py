"""The options of an evaluation: what is measured against what, and what is asked of energies.

Without torch, so that a command line can show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentite.base.options import option
from latentite.base.plain import NOT_TYPED
from latentite.energy.settings import ENERGIES, RelaxCell, RelaxSettings

if TYPE_CHECKING:
    from latentite.energy.parallel import RelaxHow
    from latentite.energy.potential import TheoryLevel
    from latentite.evaluation.read import Source

COMPARISONS = "features, conditions and targets"
"""Heading of these options in the help."""

Split = Literal["train", "val", "test", "all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """The options of `latentite evaluate`, under the same names."""

    source: Source | Sequence[str | Path] = field(
        metadata=option("SOURCE", kind=str, positional=True, repeatable=True)
    )
    """A folder or zip of CIFs, an extxyz, a table, a folder of `latentite sample`, ..., or a dataset's name; several
    are evaluated as one.

    In Python also structures in memory; a list of paths and names is several sources."""
    reference: Source | None = field(default=None, metadata=option("NAME_OR_FILE", kind=str))
    """Structures that are known already, given like SOURCE; without it there is no novelty."""
    protocol: str = "default"
    """Definition of valid, unique and novel: default, chemeleon2, mattergen, cdvae, lemat."""
    out: str | Path | None = field(default=None, metadata=option("DIR"))
    """Folder of the report.

    None writes nothing. An older report there is replaced."""
    split: Split = "test"
    """The split of a SOURCE that has splits."""
    reference_split: Split = "train"
    """The split of the reference."""
    resume: bool = False
    """Go on where an evaluation of the same into --out was stopped."""
    workers: int | None = None
    """Processes; they do not change the result [all cores]."""
    seed: int = 0
    """Draws the structures of the gallery."""
    fingerprints: str = field(default="radial", metadata=option(group=COMPARISONS))
    """radial; crystalnn adds CDVAE's coverage, 0.3 s a crystal when it is new."""
    vae: str | Path | None = field(default=None, metadata=option("NAME_OR_PATH", group=COMPARISONS))
    """Checkpoint in whose latent space the reference is compared too."""
    tolerances: Mapping[str, float] | None = field(
        default=None,
        metadata=option("NAME=VALUE", flag="--tolerance", group=COMPARISONS, kind=str, repeatable=True),
    )
    """Largest distance from what was asked of NAME that still hits, in its unit; repeatable; needed where 0 was asked
    [5 % of the value]."""
    targets: Source | None = field(default=None, metadata=option("NAME_OR_FILE", group=COMPARISONS, kind=str))
    """Right structures of what was to be predicted; samples are compared with those of their formula."""
    targets_split: Split = field(default="test", metadata=option(group=COMPARISONS))
    """The split of the targets."""
    relax: str | EnergyOptions = field(default="none", metadata=option("POTENTIAL", group=ENERGIES, kind=str))
    """none, chgnet, 7net-0 or package.module:Class of an ASE calculator.

    It judges and relaxes the structures; `EnergyOptions` say everything of it."""
    hull: str | Path | Sequence[str | Path] | None = field(
        default=None, metadata=option("NAME_OR_FILE", group=ENERGIES, repeatable=True)
    )
    """Table with formation energies to compete with, every split of it; repeatable [the reference]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyOptions:
    """The potential that judges, what it may move, and what a structure competes with."""

    potential: str = field(metadata=NOT_TYPED)
    """`chgnet`, `7net-0` or `package.module:Class` of an ASE calculator."""
    settings: RelaxSettings = field(default_factory=RelaxSettings, metadata=NOT_TYPED)
    """Parts that relaxation moves, and when it ends; with `cell` none the structures are judged as they are."""
    hull: tuple[str | Path, ...] = field(default=(), metadata=NOT_TYPED)
    """Tables with formation energies, of which every split is taken; without any nothing is called stable."""
    hull_theory: TheoryLevel | None = field(default=None, metadata=option("LEVEL", group=ENERGIES, kind=str))
    """Level of theory of a hull without a known name, such as 'PBE(+U), corrected' (the Materials Project's)."""
    phase_diagram: Path | None = field(default=None, metadata=option("JSON", group=ENERGIES))
    """Hull to take instead: a phase diagram or entries of pymatgen, or a hull of latentite; --hull still gives the
    element references."""
    arguments: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=option("JSON", flag="--potential-arguments", group=ENERGIES, kind=str),
    )
    """Keyword arguments of an ASE calculator."""
    theory: TheoryLevel | None = field(
        default=None, metadata=option("LEVEL", flag="--potential-theory", group=ENERGIES, kind=str)
    )
    """Level of theory of an ASE calculator's energies, as --hull-theory."""
    allow_mixed_theory: bool = field(default=False, metadata=option(group=ENERGIES))
    """Judge also when the levels of theory of potential and hull differ."""

    @property
    def name(self) -> str:
        """In a few words."""
        cell = self.settings.cell
        return f"{self.potential}, {'single points' if cell is RelaxCell.NONE else f'cell {cell.value}'}"

    def how(self) -> RelaxHow:
        """The same in the words of `energy/`."""
        from latentite.energy.parallel import RelaxHow

        return RelaxHow(
            potential=self.potential, arguments=self.arguments, theory=self.theory, settings=self.settings
        )

    def check(self) -> None:
        """Before anything heavy: is there such a potential and such a table?

        Raises:
            FileNotFoundError: when there is no such table.
            ImportError: when the potential's package is not installed.
            ValueError: for an unknown potential, or settings that cannot be.
        """
        from latentite.energy.catalogue import potential_by_name
        from latentite.energy.hull import hull_from_json
        from latentite.energy.table import find_table

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
            "cell": self.settings.cell.value,
            "max_steps": self.settings.max_steps,
            "fmax": self.settings.fmax,
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
    from latentite.energy.table import NoEnergiesError, find_table, read_rows

    if not isinstance(reference, str | Path):
        return ()
    try:
        read_rows(find_table(reference))
    except (FileNotFoundError, NoEnergiesError):
        return ()
    return (reference,)
