"""The section of energies: stability of the structures as they came and relaxed, side by side.

`stable` is at most 0, `metastable` at most 0.1 eV/atom above the hull of this potential, this table and these element
references, all named in the summary. SUN is stable, unique and novel; MSUN the same with metastable, in both
conventions: `msun` includes the stable ones, `msun_exclusive` does not. Names that begin with `relaxed_` are of the
relaxed structures, which are compared anew with each other and with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from latentite.energy.hull import hull_from_json
from latentite.energy.parallel import RelaxHow
from latentite.energy.relax import RelaxCell
from latentite.energy.table import find_table, missing_phases, table_hull, table_references
from latentite.evaluation.energies import Energies, energy_store, measure_energies
from latentite.evaluation.energy_options import EnergyOptions
from latentite.evaluation.energy_page import energy_page
from latentite.evaluation.energy_summary import Competition, energy_summary, label_distances
from latentite.evaluation.measure import Cell
from latentite.evaluation.relaxed_file import write_relaxed
from latentite.evaluation.sections import stored_matches
from latentite.evaluation.steps import timed
from latentite.evaluation.store import structure_hash
from latentite.evaluation.table import Counted, Denominator, MakeSection, Section, Table, Work, all_of

METASTABLE = 0.1
"""eV/atom above hull."""
ALL = Denominator.ALL_IN

_STEPS = {
    RelaxCell.NONE: "energies",
    RelaxCell.FIXED: "relax atoms in fixed cells",
    RelaxCell.FULL: "relax structures",
}
_PROTOCOL_LABELS = {"protocol_sun": "SUN", "protocol_msun": "MSUN"}


def energy_section(options: EnergyOptions) -> MakeSection:
    """The section for these options."""

    def make(work: Work, table: Mapping[str, list[Cell]]) -> Section:
        """Energies, then the verdicts that follow from them."""
        how = options.how()
        competition = _competition(options, how, work)
        with timed(work.seconds, "energies"):
            energies = measure_energies(
                work.crystals.arrays,
                how=how,
                hull=competition.hull,
                references=competition.references,
                allow_mixed_theory=options.allow_mixed_theory,
                hashes=work.crystals.hashes,
                kept=energy_store(how),
                workers=work.workers,
                advance=work.stage(_STEPS[options.cell], len(work.crystals)),
            )
        judged = _judged(energies, work, table)
        found = energy_summary(options, energies, competition, judged.columns)
        found["wasserstein_eV_per_atom"] = label_distances(work, judged.columns)
        return Section(
            columns=judged.columns,
            counted=judged.counted,
            failures=(*energies.failures, *judged.failures),
            summary={"energies": found},
            page=lambda: energy_page(found, judged.columns),
            files={"relaxed.extxyz": lambda path: write_relaxed(path, energies, work.crystals.ids)},
        )

    return make


def _judged(energies: Energies, work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Columns of the energies and of all verdicts that they allow."""
    columns: Table = energies.columns()
    counted: list[Counted] = []
    failures: tuple[tuple[int, str, str], ...] = ()
    if energies.is_relaxation:
        counted.append(Counted(column="relax_converged", label="relaxation converged"))
        relaxed, failures = _relaxed_matches(energies, work)
        columns |= relaxed
        counted += [
            Counted(column=name, label=f"{name.removeprefix('relaxed_')}, relaxed") for name in relaxed
        ]
    if energies.raw_stability is not None:
        for prefix in ("", "relaxed_") if energies.is_relaxation else ("",):
            columns |= _verdicts(prefix, {**table, **columns})
            counted += _counted(prefix, columns)
        columns |= _as_protocol(work, {**table, **columns})
        counted += [
            Counted(column=name, label=f"{label} as protocol {work.protocol.name} has it", denominator=ALL)
            for name, label in _PROTOCOL_LABELS.items()
            if name in columns
        ]
    return Section(columns=columns, counted=tuple(counted), failures=failures)


def _competition(options: EnergyOptions, how: RelaxHow, work: Work) -> Competition:
    """The hull, and what joins the potential's energies with it."""
    if not options.hull:
        return Competition()
    with timed(work.seconds, "hull and element references"):
        phases = find_table(options.hull, theory=options.hull_theory)
        work.stage("convex hull", None)
        missing = None
        if options.phase_diagram is None:
            hull, missing = table_hull(phases), missing_phases(phases)
        else:
            hull = hull_from_json(options.phase_diagram, theory=phases.theory)
        references = table_references(
            phases,
            how,
            workers=work.workers,
            advance=work.stage("element references", None),
            allow_mixed_theory=options.allow_mixed_theory,
        )
    return Competition(phases=phases, hull=hull, missing=missing, references=references)


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
    stable, metastable = _at_most(0.0, heights), _at_most(METASTABLE, heights)
    columns: Table = {f"{prefix}stable": stable, f"{prefix}metastable": metastable}
    if "novel" not in table:
        return columns
    unique, novel = table[f"{prefix}unique"], table[f"{prefix}novel"]
    between: list[Cell] = [
        None if low is None else bool(high) and not low for low, high in zip(stable, metastable, strict=True)
    ]
    for name, height in {"sun": stable, "msun": metastable, "msun_exclusive": between}.items():
        columns[f"{prefix}{name}"] = all_of(height, unique, novel)
    return columns


def _at_most(limit: float, heights: Sequence[Cell]) -> list[Cell]:
    """Whether each is at most so high (eV/atom) above the hull; None where that is not known."""
    return [None if height is None else float(height) <= limit for height in heights]


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


def _as_protocol(work: Work, table: Mapping[str, list[Cell]]) -> Table:
    """SUN and MSUN as the protocol has them, when the side that it judges is there."""
    protocol = work.protocol
    prefix = "relaxed_" if protocol.judges_relaxed else ""
    if f"{prefix}sun" not in table:
        return {}
    stable = _at_most(protocol.stable_below, table[f"{prefix}energy_above_hull"])
    found = {"protocol_sun": all_of(stable, table[f"{prefix}unique"], table[f"{prefix}novel"])}
    if protocol.msun is not None:
        found["protocol_msun"] = table[f"{prefix}{protocol.msun}"]
    return found
