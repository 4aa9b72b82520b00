"""The section of energies: stability of the structures as they came and relaxed, side by side.

`stable` is at most 0, `metastable` at most 0.1 eV/atom above the hull of this potential, this table and these element
references, all named in the summary. SUN is stable, unique and novel; MSUN the same with metastable, in both
conventions: `msun` includes the stable ones, `msun_exclusive` does not. Names that begin with `relaxed_` are of the
relaxed structures, which are compared anew with each other and with the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np

from latentite.draw.charts import COLOURS
from latentite.energy.hull import Hull, hull_from_json
from latentite.energy.parallel import RelaxHow
from latentite.energy.references import ElementReferences
from latentite.energy.settings import RelaxCell
from latentite.energy.table import (
    EnergyTable,
    MissingPhases,
    find_table,
    missing_phases,
    table_hull,
    table_references,
)
from latentite.evaluation.energies import Energies, energy_store, measure_energies, write_relaxed
from latentite.evaluation.markup import html_table, number_text, share_axes, svg_text
from latentite.evaluation.matching_section import stored_matches
from latentite.evaluation.measure import Cell, timed
from latentite.evaluation.options import EnergyOptions
from latentite.evaluation.result import (
    Counted,
    Denominator,
    MakeSection,
    Section,
    Table,
    Work,
    all_of,
    finite,
)
from latentite.evaluation.store import structure_hash
from latentite.metrics.distributions import wasserstein

METASTABLE = 0.1
"""eV/atom above hull."""
ALL = Denominator.ALL_IN

_STEPS = {
    RelaxCell.NONE: "energies",
    RelaxCell.FIXED: "relax atoms in fixed cells",
    RelaxCell.FULL: "relax structures",
}
_PROTOCOL_LABELS = {"protocol_sun": "SUN", "protocol_msun": "MSUN"}


_LABELS = {
    "formation_energy": ("formation_energy_per_atom",),
    "energy_above_hull": ("energy_above_hull", "e_above_hull"),
}
"""Columns of the reference that hold the same property."""
_MEDIANS = (
    "energy",
    "energy_above_hull",
    "relaxed_energy",
    "relaxed_energy_above_hull",
    "rmsd_to_relaxed",
    "relaxed_volume_change",
    "relax_steps",
)
_RANGE = (-0.2, 1.0)
"""eV/atom; how many lie outside stands in the legend."""

_MEDIAN_LABELS = {
    "energy_above_hull": ("energy above hull as they came", "eV/atom"),
    "relaxed_energy_above_hull": ("energy above hull, relaxed", "eV/atom"),
    "rmsd_to_relaxed": ("RMSD to the relaxed structure", "Å"),
    "relaxed_volume_change": ("relative change of volume", ""),
    "relax_steps": ("steps of relaxation", ""),
}


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
                advance=work.stage(_STEPS[options.settings.cell], len(work.crystals)),
            )
        judged = _judged(energies, work, table)
        content = energy_summary(options, energies, competition, judged.columns)
        content["wasserstein_eV_per_atom"] = label_distances(work, judged.columns)
        return Section(
            columns=judged.columns,
            counted=judged.counted,
            failures=(*energies.failures, *judged.failures),
            summary={"energies": content},
            page=lambda: energy_page(content, judged.columns),
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
    """Columns `relaxed_unique` and `relaxed_novel`, empty where there is no relaxed structure, and failures."""
    positions = np.flatnonzero(energies.is_converged.numpy()).tolist()
    everything = energies.relaxed.crystals.to_arrays()
    arrays = [everything[position] for position in positions]
    with timed(work.seconds, "match relaxed"):
        hashes = [structure_hash(crystal) for crystal in arrays]
        matches = stored_matches(work, arrays, hashes, name="match relaxed structures")
    verdicts = matches.verdicts[work.protocol.matcher.name]
    cells_by_name = {"relaxed_unique": [None if v is None else v.duplicate_of is None for v in verdicts]}
    if work.reference is not None:
        cells_by_name["relaxed_novel"] = [None if v is None else v.reference is None for v in verdicts]
    columns: Table = {}
    for name, cells in cells_by_name.items():
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
    """True for each that is at most so high (eV/atom) above the hull; None where that is not known."""
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
    columns = {"protocol_sun": all_of(stable, table[f"{prefix}unique"], table[f"{prefix}novel"])}
    if protocol.msun is not None:
        columns["protocol_msun"] = table[f"{prefix}{protocol.msun}"]
    return columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Competition:
    """The competitors of the structures; all None without a table."""

    phases: EnergyTable | None = None
    """The table with formation energies."""
    hull: Hull | None = None
    """Of that table, or the phase diagram that was given instead."""
    missing: MissingPhases | None = None
    """Rows of the table that its hull lacks; None for a phase diagram."""
    references: ElementReferences | None = None
    """Between the potential and the table."""


def energy_summary(
    options: EnergyOptions,
    energies: Energies,
    competition: Competition,
    columns: Mapping[str, Sequence[Cell]],
) -> dict[str, Any]:
    """Potential, settings, hull and element references by name and hash; how relaxations ended; medians."""
    phases, hull, references = competition.phases, competition.hull, competition.references
    card = energies.card
    content: dict[str, Any] = {
        "potential": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "theory": None if card.theory is None else str(card.theory),
        },
        "relaxation": {
            "cell": options.settings.cell.value,
            "fmax": options.settings.fmax,
            "max_steps": options.settings.max_steps,
        },
        "settings": asdict(energies.how.settings),
        "status": energies.counts,
        "medians": {name: median for name in _MEDIANS if (median := _median(columns.get(name))) is not None},
        "hull": None,
        "unknown_systems": energies.unknown_systems,
        "unknown_elements": energies.unknown_elements,
    }
    if phases is not None and hull is not None and references is not None:
        content["hull"] = {
            "name": phases.name if options.phase_diagram is None else str(options.phase_diagram),
            "sha256": hull.sha256,
            "theory": None if phases.theory is None else str(phases.theory),
            "num_phases": len(hull),
            "missing_phases": None if competition.missing is None else asdict(competition.missing),
            "element_references": {
                "table": phases.name,
                "terms": references.terms.value,
                "num_rows": references.num_rows,
                "mean_absolute_residual": references.mean_absolute_residual,
                "left_out_residual": finite(references.left_out_residual),
            },
        }
    return content


def label_distances(work: Work, columns: Mapping[str, Sequence[Cell]]) -> dict[str, float | None]:
    """Wasserstein distances to the labels of the reference, where it has such labels."""
    distances: dict[str, float | None] = {}
    labels = {} if work.reference is None else work.reference.labels
    for name, names in _LABELS.items():
        label = next((labels[n] for n in names if n in labels), None)
        for column in (name, f"relaxed_{name}"):
            if label is not None and column in columns:
                distances[column] = finite(wasserstein(_numbers(columns[column]), _numbers(label)))
    return distances


def _numbers(cells: Sequence[object]) -> np.ndarray:
    return np.array([float(cell) for cell in cells if isinstance(cell, int | float) and np.isfinite(cell)])


def _median(column: Sequence[Cell] | None) -> float | None:
    known = _numbers(column or ())
    return float(np.median(known)) if len(known) else None


def energy_page(content: Mapping[str, Any], columns: Mapping[str, Sequence[Cell]]) -> str:
    """HTML of the section.

    Args:
        content: what the summary says of energies.
        columns: of the section.
    """
    potential, hull = content["potential"], content["hull"]
    words = f"{escape(potential['name'])} {escape(str(potential['version']))} ({escape(str(potential['theory']))})"
    parts = [f"<h2>Energies</h2><p>Potential {words}; what may move: {content['relaxation']['cell']}."]
    if hull is None:
        parts.append(" No hull was given, so nothing is called stable.</p>")
    else:
        residual = hull["element_references"]["left_out_residual"]
        parts.append(
            f" Hull of {escape(hull['name'])}: {hull['num_phases']:,} compositions; element references fitted on "
            f"{hull['element_references']['num_rows']:,} rows, mean absolute residual of rows left out "
            f"{number_text(residual, '.3f')} eV/atom. An incomplete hull errs towards stable.</p>"
        )
        if (missing := hull["missing_phases"]) and (
            lost := missing["without_energy"] + missing["unreadable"]
        ):
            parts.append(
                f"<p><b>{lost:,} of {missing['num_rows']:,} phases of this table are missing from the hull</b> "
                f"({missing['without_energy']:,} without a formation energy, {missing['unreadable']:,} unreadable): "
                "fewer phases make everything look stable.</p>"
            )
        parts.append(f"<figure><figcaption>Energy above hull</figcaption>{_histogram(columns)}</figure>")
    medians = []
    for name, value in content["medians"].items():
        label, unit = _MEDIAN_LABELS.get(name, (name, "eV/atom"))
        medians.append((label, number_text(value, ".3f", unit)))
    parts.append(_two_columns("median", medians))
    distances = [
        (_MEDIAN_LABELS.get(name, (name, ""))[0], number_text(value, ".3f", "eV/atom"))
        for name, value in content["wasserstein_eV_per_atom"].items()
    ]
    parts.append(_two_columns("Wasserstein distance to the reference's own labels", distances))
    parts.append(
        _two_columns("how it ended", [(name, f"{count:,}") for name, count in content["status"].items()])
    )
    unknown = list(content["unknown_systems"].items())
    if unknown:
        listed = ", ".join(f"{escape(name)} ({count:,})" for name, count in unknown[:30])
        more = f" and {len(unknown) - 30:,} more" if len(unknown) > 30 else ""
        parts.append(f"<p class='small'>Unknown to the hull: {listed}{more}.</p>")
    return "".join(parts)


def _two_columns(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return html_table([title, ""], rows) if rows else ""


def _histogram(columns: Mapping[str, Sequence[Cell]]) -> str:
    """Shares of the known ones, as they came and relaxed."""
    figure, axes = share_axes("eV/atom", width=9.4, height=2.6)
    edges = np.linspace(*_RANGE, 61)
    sides = {"as they came": "energy_above_hull", "relaxed": "relaxed_energy_above_hull"}
    for colour, (name, column) in zip(COLOURS, sides.items(), strict=False):
        known = np.array([cell for cell in columns.get(column, ()) if cell is not None], dtype=float)
        if not len(known):
            continue
        outside = int(((known < edges[0]) | (known > edges[-1])).sum())
        axes.hist(
            known,
            edges.tolist(),
            weights=np.full(len(known), 1 / len(known)),
            color=colour,
            label=f"{name} ({len(known):,}; {outside:,} outside)",
            histtype="stepfilled" if name == "relaxed" else "step",
            alpha=0.8,
            linewidth=1.6,
        )
    for height in (0.0, 0.1):
        axes.axvline(height, color="#22272e", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return svg_text(figure)
