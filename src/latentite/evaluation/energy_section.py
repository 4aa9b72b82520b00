"""The section of energies: stability of the structures as they came and relaxed, side by side.

`stable` is at most 0, `metastable` at most 0.1 eV/atom above the hull of this potential, this table and these element
references, all named in the summary. SUN is stable, unique and novel; MSUN the same with metastable, in both
conventions: `msun` includes the stable ones, `msun_exclusive` does not. Names that begin with `relaxed_` are of the
relaxed structures, which are compared anew with each other and with the reference. Comes after `energies.py` and
`sections.py`; `run.py` lists it when a potential is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentite.energy.catalogue import potential_by_name
from latentite.energy.hull import Hull
from latentite.energy.hull_sources import hull_from_json
from latentite.energy.parallel import RelaxHow
from latentite.energy.potential import TheoryLevel
from latentite.energy.reference_fit import table_references
from latentite.energy.references import ElementReferences
from latentite.energy.relaxation import RelaxCell, RelaxSettings
from latentite.energy.table import EnergyTable, find_table, read_rows, table_hull
from latentite.evaluation.distributions import finite
from latentite.evaluation.energies import Energies, energy_store, measure_energies
from latentite.evaluation.energy_page import energy_page
from latentite.evaluation.measure import Cell
from latentite.evaluation.relaxed_file import write_relaxed
from latentite.evaluation.sections import stored_matches
from latentite.evaluation.steps import timed
from latentite.evaluation.store import structure_hash
from latentite.evaluation.table import Counted, Denominator, MakeSection, Section, Table, Work, all_of
from latentite.metrics.distributions import wasserstein

METASTABLE = 0.1
"""eV/atom above hull."""


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
    """The reference, as what structures compete with, where it is a table with formation energies."""
    if not isinstance(reference, str | Path):
        return ()
    try:
        read_rows(find_table(reference))
    except (FileNotFoundError, ValueError):
        return ()
    return (reference,)


def energy_section(options: EnergyOptions) -> MakeSection:
    """The section for these options."""

    def make(work: Work, table: Mapping[str, list[Cell]]) -> Section:
        how = options.how()
        phases, hull, references = _competition(options, how, work)
        with timed(work.seconds, "energies"):
            energies = measure_energies(
                work.crystals.arrays,
                how=how,
                hull=hull,
                references=references,
                allow_mixed_theory=options.allow_mixed_theory,
                hashes=work.crystals.hashes,
                kept=energy_store(how),
                workers=work.workers,
                advance=work.stage(_STEPS[options.cell], len(work.crystals)),
            )
        columns: Table = energies.columns()
        counted: list[Counted] = []
        if energies.is_relaxation:
            counted.append(Counted(column="relax_converged", label="relaxation converged"))
            relaxed, failures = _relaxed_matches(energies, work)
            columns |= relaxed
            counted += [Counted(column=name, label=f"{_words(name)}, relaxed") for name in relaxed]
        else:
            failures = ()
        if energies.raw_stability is not None:
            for prefix in ("", "relaxed_") if energies.is_relaxation else ("",):
                columns |= _verdicts(prefix, {**table, **columns})
                counted += _counted(prefix, columns)
            columns |= _as_protocol(work, columns)
            counted += [
                Counted(
                    column=name, label=f"{label} as protocol {work.protocol.name} has it", denominator=ALL
                )
                for name, label in _PROTOCOL_LABELS.items()
                if name in columns
            ]
        found = _summary(options, energies, phases, hull, references, columns)
        found["wasserstein_eV_per_atom"] = _distances(work, columns)
        return Section(
            columns=columns,
            counted=tuple(counted),
            failures=(*energies.failures, *failures),
            summary={"energies": found},
            page=lambda: energy_page(found, columns),
            files={"relaxed.extxyz": lambda path: write_relaxed(path, energies, work.crystals.ids)},
        )

    return make


ALL = Denominator.ALL_IN
_STEPS = {
    RelaxCell.NONE: "energies",
    RelaxCell.FIXED: "relax atoms in fixed cells",
    RelaxCell.FULL: "relax structures",
}
_PROTOCOL_LABELS = {"protocol_sun": "SUN", "protocol_msun": "MSUN"}


def _competition(
    options: EnergyOptions, how: RelaxHow, work: Work
) -> tuple[EnergyTable | None, Hull | None, ElementReferences | None]:
    """The hull, and what joins the potential's energies with it."""
    if not options.hull:
        return None, None, None
    with timed(work.seconds, "hull and element references"):
        phases = find_table(options.hull, theory=options.hull_theory)
        work.stage("convex hull", None)
        if options.phase_diagram is None:
            hull = table_hull(phases)
        else:
            hull = hull_from_json(options.phase_diagram, theory=phases.theory)
        references = table_references(
            phases,
            how,
            workers=work.workers,
            advance=work.stage("element references", None),
            allow_mixed_theory=options.allow_mixed_theory,
        )
    return phases, hull, references


def _relaxed_matches(energies: Energies, work: Work) -> tuple[Table, tuple[tuple[int, str, str], ...]]:
    """Whether the relaxed structures are unique and novel; empty where there is none."""
    positions = np.flatnonzero(energies.is_converged.numpy()).tolist()
    everything = energies.relaxed.crystals.to_arrays()
    arrays = [everything[position] for position in positions]
    with timed(work.seconds, "match relaxed"):
        hashes = [structure_hash(crystal) for crystal in arrays]
        matches = stored_matches(work, arrays, hashes, name="match relaxed structures")
    verdicts = matches.verdicts[work.protocol.matcher.name]
    found = {"relaxed_unique": [None if v is None else v.duplicate_of is None for v in verdicts]}
    if work.reference is not None:
        found["relaxed_novel"] = [None if v is None else v.reference is None for v in verdicts]
    columns: Table = {}
    for name, cells in found.items():
        column: list[Cell] = [None] * len(work.crystals)
        for position, cell in zip(positions, cells, strict=True):
            column[position] = cell
        columns[name] = column
    failures = ((positions[k], "match relaxed", reason) for k, reason in matches.failures.items())
    return columns, tuple(failures)


def _verdicts(prefix: str, table: Mapping[str, Sequence[Cell]]) -> Table:
    """Stable, metastable, and these with unique and novel, of one side."""
    heights = table[f"{prefix}energy_above_hull"]
    stable = [None if height is None else float(height) <= 0.0 for height in heights]
    metastable = [None if height is None else float(height) <= METASTABLE for height in heights]
    columns: Table = {f"{prefix}stable": [*stable], f"{prefix}metastable": [*metastable]}
    if "novel" not in table:
        return columns
    unique, novel = table[f"{prefix}unique"], table[f"{prefix}novel"]
    between = [
        None if low is None else bool(high) and not low for low, high in zip(stable, metastable, strict=True)
    ]
    for name, height in {"sun": stable, "msun": metastable, "msun_exclusive": between}.items():
        columns[f"{prefix}{name}"] = all_of(height, unique, novel)
    return columns


def _counted(prefix: str, columns: Mapping[str, Sequence[Cell]]) -> Iterator[Counted]:
    after = ", relaxed" if prefix else ", as they came"
    yield Counted(column=f"{prefix}stable", label=f"stable (at most 0 eV/atom above hull){after}")
    yield Counted(column=f"{prefix}metastable", label=f"metastable (at most {METASTABLE:g}){after}")
    if f"{prefix}sun" in columns:
        yield Counted(column=f"{prefix}sun", label=f"SUN: stable, unique and novel{after}", denominator=ALL)
        yield Counted(column=f"{prefix}msun", label=f"MSUN, stable ones included{after}", denominator=ALL)
        yield Counted(
            column=f"{prefix}msun_exclusive", label=f"MSUN, stable ones excluded{after}", denominator=ALL
        )


def _as_protocol(work: Work, columns: Mapping[str, list[Cell]]) -> Table:
    """SUN and MSUN as the protocol has them, when the side that it judges is there."""
    protocol = work.protocol
    prefix = "relaxed_" if protocol.judges_relaxed else ""
    if f"{prefix}sun" not in columns:
        return {}
    found = {"protocol_sun": columns[f"{prefix}{'msun' if protocol.stable_below > 0 else 'sun'}"]}
    if protocol.msun is not None:
        found["protocol_msun"] = columns[f"{prefix}{protocol.msun}"]
    return found


def _words(name: str) -> str:
    return name.removeprefix("relaxed_")


def _summary(
    options: EnergyOptions,
    energies: Energies,
    phases: EnergyTable | None,
    hull: Hull | None,
    references: ElementReferences | None,
    columns: Mapping[str, Sequence[Cell]],
) -> dict[str, Any]:
    card = energies.card
    found: dict[str, Any] = {
        "potential": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "theory": None if card.theory is None else str(card.theory),
        },
        "relaxation": {"cell": options.cell.value, "fmax": options.fmax, "max_steps": options.max_steps},
        "settings": asdict(energies.how.settings),
        "status": energies.counts,
        "medians": {name: median for name in _MEDIANS if (median := _median(columns.get(name))) is not None},
        "hull": None,
        "unknown_systems": energies.unknown_systems,
        "unknown_elements": energies.unknown_elements,
    }
    if phases is not None and hull is not None and references is not None:
        found["hull"] = {
            "name": phases.name if options.phase_diagram is None else str(options.phase_diagram),
            "sha256": hull.sha256,
            "theory": None if phases.theory is None else str(phases.theory),
            "num_phases": len(hull),
            "element_references": {
                "table": phases.name,
                "terms": references.terms.value,
                "num_rows": references.num_rows,
                "mean_absolute_residual": references.mean_absolute_residual,
                "left_out_residual": references.left_out_residual,
            },
        }
    return found


_LABELS = {
    "formation_energy": ("formation_energy_per_atom",),
    "energy_above_hull": ("energy_above_hull", "e_above_hull"),
}
"""Columns of the reference that hold the same property."""


def _distances(work: Work, columns: Mapping[str, Sequence[Cell]]) -> dict[str, float | None]:
    """Wasserstein distances to the labels of the reference, where it has such labels."""
    found: dict[str, float | None] = {}
    labels = {} if work.reference is None else work.reference.labels
    for name, names in _LABELS.items():
        label = next((labels[n] for n in names if n in labels), None)
        for column in (name, f"relaxed_{name}"):
            if label is not None and column in columns:
                found[column] = finite(wasserstein(_numbers(columns[column]), _numbers(label)))
    return found


def _numbers(cells: Sequence[object]) -> np.ndarray:
    return np.array([float(cell) for cell in cells if isinstance(cell, int | float) and np.isfinite(cell)])


_MEDIANS = (
    "energy",
    "energy_above_hull",
    "relaxed_energy",
    "relaxed_energy_above_hull",
    "rmsd_to_relaxed",
    "relaxed_volume_change",
    "relax_steps",
)


def _median(column: Sequence[Cell] | None) -> float | None:
    known = _numbers(column or ())
    return float(np.median(known)) if len(known) else None
