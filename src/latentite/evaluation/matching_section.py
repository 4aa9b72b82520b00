"""The section of matches: copies among the structures, and structures of the reference; then all verdicts at once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from typing import Any

from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import SYMPREC
from latentite.evaluation.measure import Cell, Measured, timed
from latentite.evaluation.options import MATCHERS
from latentite.evaluation.result import Counted, Denominator, Section, Table, Work, all_of
from latentite.evaluation.store import ResultStore, namespace
from latentite.match.reduced import reduction_settings
from latentite.match.search import Matches, Verdict, find_matches

_MATCHES_VERSION = 2
"""Raised when `match/` gives other verdicts."""
_MEMORISED = {
    "decorated_in_reference": "space group, Wyckoff letters and elements in the reference",
    "prototype_in_reference": "prototype in the reference",
}
"""Columns that tell what a model may have learnt by heart, and their labels."""
_REDUCED_VERSION = 2
"""Raised when `match/reduced.py` gives other cells."""


def matching_section(work: Work, table: Mapping[str, list[Cell]]) -> Section:
    """Copies of earlier structures, and structures that stand in the reference; plain names follow the
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
        memorised = _memorised(work.measured, work.reference_measured)
        columns |= memorised
        counted += [Counted(column="novel", label="novel (not in the reference)"), *_by_matcher("novel")]
        counted.append(Counted(column="new_formula", label="formula not in the reference"))
        counted += [Counted(column=name, label=_MEMORISED[name]) for name in memorised]
    failed = {} if reference is None else {reference.ids[p]: r for p, r in matches.reference_failures.items()}
    return Section(
        columns=columns,
        counted=tuple(counted),
        failures=tuple((position, "match", reason) for position, reason in matches.failures.items()),
        summary={"reference_not_comparable": failed},
    )


def _memorised(measured: Measured, reference: Measured) -> Table:
    """Columns: whether each structure, but for its free coordinates and cell, stands in the reference.

    They are empty where it has no label.
    """
    own = [symmetry.label for symmetry in measured.symmetries]
    known = [symmetry.label for symmetry in reference.symmetries if symmetry.label is not None]
    decorated, prototypes = {label.decorated for label in known}, {label.prototype for label in known}
    return {
        "decorated_in_reference": [None if label is None else label.decorated in decorated for label in own],
        "prototype_in_reference": [None if label is None else label.prototype in prototypes for label in own],
    }


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
