"""The sections that every evaluation has: what came in, structure, composition, symmetry, matches, verdicts.

Each is a function as `table.py` describes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from typing import Any

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import SYMPREC
from latentite.evaluation.measure import Cell, Measured
from latentite.evaluation.protocols import MATCHERS, Protocol
from latentite.evaluation.steps import timed
from latentite.evaluation.store import ResultStore, namespace
from latentite.evaluation.table import Counted, Denominator, Section, Table, Work, all_of
from latentite.match.reduced import reduction_settings
from latentite.match.search import Matches, Verdict, find_matches
from latentite.metrics.composition import SmactRule

_MATCHES_VERSION = 2
"""Raised when `match/` gives other verdicts."""
_REDUCED_VERSION = 2
"""Raised when `match/reduced.py` gives other cells."""

_ASKED = ("ask", "conditions")
"""Labels of a sampling run that stand in the table."""


def source_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Where each structure comes from, and for samples what was asked of the model."""
    crystals = work.crystals
    columns: Table = {
        "id": list(crystals.ids),
        "source": list(crystals.sources),
        "row": list(crystals.rows),
    }
    summary: dict[str, Any] = {}
    if crystals.sampling is not None:
        asked = {name: crystals.labels.get(name, ()) for name in _ASKED}
        columns |= {name: list(values) for name, values in asked.items() if any(values)}
        keys = ["status", "settings", "checkpoint", "counts"]
        keys += [key for key in ("parts", "runs") if key in crystals.sampling]  # merged, or several sources
        summary["sampling"] = {key: crystals.sampling.get(key) for key in keys}
    return Section(columns=columns, summary=summary)


def measured_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """What is measured of each structure alone."""
    columns = work.measured.columns()
    groups = columns[f"space_group_{SYMPREC:g}"]
    columns["symmetric"] = [None if group is None else group != 1 for group in groups]
    unknown = {
        rule.value: sum(cell is True for cell in columns[f"{rule.value}_unknown_element"])
        for rule in SmactRule
    }
    return Section(
        columns=columns,
        failures=tuple(work.measured.failures),
        summary={"smact_unknown_element": unknown},
    )


def validity_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Validity of structure and composition, as the protocol has it."""
    protocol, measured = work.protocol, work.measured
    columns = structure_validity(protocol, measured)
    columns["composition_valid"] = table[protocol.composition_rule.value]
    columns["valid"] = all_of(columns["structure_valid"], columns["composition_valid"])
    return Section(
        columns=columns,
        counted=(
            Counted(column="min_distance_ok", label="no atoms closer than the limit"),
            Counted(column="volume_ok", label="cell not flat"),
            Counted(column="structure_valid", label="structure valid (both)"),
            Counted(column="smact_icsd24", label="composition valid, SMACT icsd24"),
            Counted(column="smact_pauling", label="composition valid, SMACT as in older papers"),
            Counted(column="charge_neutral", label="charge neutral (bond valence or composition)"),
            Counted(column="composition_valid"),
            Counted(column="valid", label="valid (structure and composition)"),
        ),
    )


def structure_validity(protocol: Protocol, measured: Measured) -> Table:
    """Columns `min_distance_ok`, `volume_ok` and `structure_valid`, as the protocol has it."""
    distance = (
        np.minimum(measured.distance, measured.own_distance) if protocol.own_images else measured.distance
    )
    far, big = distance >= protocol.min_distance, measured.volume >= protocol.min_volume
    is_known = np.isfinite(measured.own_distance)
    return {
        "min_distance_ok": [bool(f) if k else None for f, k in zip(far, is_known, strict=True)],
        "volume_ok": big.tolist(),
        # A cell too flat to be reduced has no known distance, and is no valid structure either way.
        "structure_valid": (far & big & is_known).tolist(),
    }


def matching_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Which structures are copies of earlier ones, and which stand in the reference; plain names follow the
    protocol."""
    crystals, reference, chosen = work.crystals, work.reference, work.protocol.matcher.name
    with timed(work.seconds, "match"):
        matches = stored_matches(work, crystals.arrays, crystals.hashes)
    columns: Table = {}
    for name in (settings.name for settings in MATCHERS):
        verdicts = matches.verdicts[name]
        columns[f"unique_{name}"] = [None if v is None else v.duplicate_of is None for v in verdicts]
        columns[f"duplicate_of_{name}"] = [
            None if v is None or v.duplicate_of is None else crystals.ids[v.duplicate_of] for v in verdicts
        ]
        if reference is not None:
            columns[f"novel_{name}"] = [None if v is None else v.reference is None for v in verdicts]
            columns[f"matched_reference_{name}"] = [
                None if v is None or v.reference is None else reference.ids[v.reference] for v in verdicts
            ]
    columns["unique"] = columns[f"unique_{chosen}"]
    counted = [Counted(column="unique", label="unique"), *_by_matcher("unique")]
    if reference is not None and work.reference_measured is not None:
        formulas = set(work.reference_measured.formulas)
        columns["new_formula"] = [formula not in formulas for formula in work.measured.formulas]
        columns["novel"] = columns[f"novel_{chosen}"]
        counted += [Counted(column="novel", label="novel (not in the reference)"), *_by_matcher("novel")]
        counted.append(Counted(column="new_formula", label="formula not in the reference"))
    failed = {} if reference is None else {reference.ids[p]: r for p, r in matches.reference_failures.items()}
    return Section(
        columns=columns,
        counted=tuple(counted),
        failures=tuple((position, "match", reason) for position, reason in matches.failures.items()),
        summary={"reference_not_comparable": failed},
    )


def verdict_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """All verdicts at once, of everything that came in; and symmetry, which no protocol asks for."""
    label = f"with symmetry (space group above P1 at {SYMPREC:g} Å)"
    symmetric = Counted(column="symmetric", label=label)
    if work.reference is None:
        return Section(counted=(symmetric,))
    name = "valid_unique_novel"
    together = Counted(column=name, label="valid, unique and novel", denominator=Denominator.ALL_IN)
    return Section(
        columns={name: all_of(table["valid"], table["unique"], table["novel"])},
        counted=(together, symmetric),
    )


def stored_matches(
    work: Work, arrays: Sequence[CrystalArrays], hashes: Sequence[str], *, name: str = "match structures"
) -> Matches:
    """Verdicts of structures against the reference, from the store when they are known.

    Args:
        work: the reference, and how much may be done at once.
        arrays: the structures.
        hashes: `structure_hash` of each.
        name: of the step.
    """
    reference = work.reference
    settings = {"matchers": [astuple(m) for m in MATCHERS], "pymatgen-core": version("pymatgen-core")}
    store = ResultStore.open(namespace("matches", _MATCHES_VERSION, settings))
    sides = [*hashes, "against", *(reference.hashes if reference is not None else ())]
    key = hashlib.sha256("\n".join(sides).encode()).hexdigest()
    if (known := store.get_many([key]).get(key)) is not None:
        return _from_plain(known)
    matches = find_matches(
        arrays,
        reference.arrays if reference is not None else (),
        settings=MATCHERS,
        workers=work.workers,
        advance=work.stage(name, len(arrays)),
        reference_hashes=reference.hashes if reference is not None else None,
        store=ResultStore.open(namespace("reduced", _REDUCED_VERSION, reduction_settings())),
    )
    store.put_many({key: _to_plain(matches)})
    return matches


def _by_matcher(name: str) -> list[Counted]:
    return [Counted(column=f"{name}_{settings.name}") for settings in MATCHERS]


def _to_plain(matches: Matches) -> dict[str, Any]:
    return {
        "verdicts": {
            name: [None if v is None else [v.duplicate_of, v.reference] for v in verdicts]
            for name, verdicts in matches.verdicts.items()
        },
        "failures": list(matches.failures.items()),
        "reference_failures": list(matches.reference_failures.items()),
    }


def _from_plain(content: Mapping[str, Any]) -> Matches:
    return Matches(
        verdicts={
            name: [None if v is None else Verdict(duplicate_of=v[0], reference=v[1]) for v in verdicts]
            for name, verdicts in content["verdicts"].items()
        },
        failures=dict(content["failures"]),
        reference_failures=dict(content["reference_failures"]),
    )
