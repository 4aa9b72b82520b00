"""The options of an evaluation: measured against which reference, asked which energies, judged by which protocol.

Without torch, so that a command line can show them.

Protocols say which of the numbers count as "valid", "unique" and "novel", as published systems have it. Numbers of
different protocols must not be compared with each other. Every protocol computes the same columns; it only decides
which of them stand behind the plain names. What of a system is not reproduced is said in `note`, which the terminal,
the page and `summary.json` repeat.

MatterGen compares by default with a matcher for disordered structures: elements whose radii differ by at most 0.3 and
whose electronegativities by at most 1 may stand for each other. How it relabels sites, which radii and
electronegativities it takes, and how it scales is not fixed by these two numbers, and a rule made up here would give
numbers that only look like its own. So `mattergen` takes the ordered matcher, which that system offers too. At equal
tolerances, what matches under it also matches where elements may be exchanged besides: `unique`, `novel` and SUN are
to be read as upper bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentite.base.options import option
from latentite.base.plain import NOT_TYPED
from latentite.energy.settings import ENERGIES, RelaxCell, RelaxSettings
from latentite.match.reduced import LOOSE, STRICT, MatcherSettings
from latentite.metrics.composition import SmactRule

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


MATCHERS = (STRICT, LOOSE)
"""Every evaluation has the verdicts of both."""


class CompositionRule(StrEnum):
    """The rule that makes a composition valid, named as its column of the table."""

    SMACT_ICSD24 = SmactRule.ICSD24.value
    SMACT_PAULING = SmactRule.PAULING.value
    CHARGE_NEUTRAL = "charge_neutral"
    """Neutral by bond valences or by composition (`metrics/charge.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Thresholds and settings under one name."""

    name: str
    matcher: MatcherSettings
    """Decides `unique` and `novel`."""
    composition_rule: CompositionRule
    """Decides `composition_valid`."""
    min_distance: float = 0.5
    """Å; closer atoms make a structure invalid."""
    min_volume: float = 0.1
    """Å^3 of the cell; a smaller one makes a structure invalid."""
    own_images: bool = True
    """The distance of an atom to its own periodic images counts as well."""
    judges_relaxed: bool = True
    """`protocol_sun` and `protocol_msun` are of the relaxed structures, else of those that came."""
    stable_below: float = 0.0
    """eV/atom above hull; up to here a structure counts for `protocol_sun`."""
    msun: str | None = None
    """`msun` (includes stable ones) or `msun_exclusive`, whichever it reports, if any."""
    note: str
    """Its origin, and what of it is not reproduced here."""


_DEFAULT_NOTE = "pymatgen's default tolerances and smact 4's default list of oxidation states"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="default",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_ICSD24,
            note=_DEFAULT_NOTE,
        ),
        Protocol(
            name="chemeleon2",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_ICSD24,
            judges_relaxed=False,
            msun="msun",
            note="Chemeleon2: StructureMatcher 0.2/0.3/5, unique = first of each group, SMACT icsd24",
        ),
        Protocol(
            name="mattergen",
            matcher=STRICT,
            composition_rule=CompositionRule.SMACT_PAULING,
            own_images=False,
            stable_below=0.1,
            note="MatterGen with its ordered matcher (StructureMatcher 0.2/0.3/5), the old list of SMACT, and stable "
            "up to 0.1 eV/atom above the hull; not reproduced: its disordered matcher, which it takes by default and "
            "which counts more structures as copies and as known, so that unique, novel and SUN are to be read as "
            "upper bounds of its own; potential and hull (there MatterSim, Alexandria and MP, corrected) are those "
            "that --relax and --hull name",
        ),
        Protocol(
            name="cdvae",
            matcher=LOOSE,
            composition_rule=CompositionRule.SMACT_PAULING,
            own_images=False,
            note="CDVAE and its family: StructureMatcher 0.3/0.5/10, SMACT with the old list; coverage (COV-R, COV-P) "
            "with its fingerprints and cut-offs needs --fingerprints crystalnn, without it the cut-offs are "
            "calibrated and the numbers not CDVAE's",
        ),
        Protocol(
            name="lemat",
            matcher=STRICT,
            composition_rule=CompositionRule.CHARGE_NEUTRAL,
            judges_relaxed=False,
            msun="msun_exclusive",
            note="LeMat-GenBench's choice of the structure matcher; its fingerprint hash is not reproduced. A "
            "composition is valid when charges balance, in the order of its questions, but with frequencies of "
            "oxidation states in the ICSD and with mixed valence (see metrics/charge.py), so the rate is near its own "
            "and not equal to it",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]
