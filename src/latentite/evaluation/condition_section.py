"""The section of conditions: shares of the samples that are what was asked for.

A folder of `latentite sample` says what each crystal was asked: values of the model's conditions, and a formula where
atoms were dealt out. Each is held against the column of the table that measures the same; what no column measures is
named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from latentite.data.properties import SYMPREC
from latentite.data.readers.records import CANONICAL_NAMES
from latentite.elements import ATOMIC_NUMBER
from latentite.evaluation.markup import html_table, number_text
from latentite.evaluation.measure import Cell
from latentite.evaluation.read import Crystals
from latentite.evaluation.result import Counted, MakeSection, Section, Table, Work, finite
from latentite.formulas import parse_amounts
from latentite.metrics.rates import HitRate, Rate, categorical_hit_rate, numeric_hit_rate, numeric_hits
from latentite.nn.condition_values import split_request

RELATIVE_TOLERANCE = 0.05
"""Of a number that was asked, where no `--tolerance` is given."""
FRACTION_TOLERANCE = 1e-5
"""Of a composition's fractions, which are written with six digits."""

_COLUMNS = {
    "space_group": (f"space_group_{SYMPREC:g}",),
    "space_group_number": (f"space_group_{SYMPREC:g}",),
    "formation_energy": ("relaxed_formation_energy", "formation_energy"),
    "formation_energy_per_atom": ("relaxed_formation_energy", "formation_energy"),
    "energy_above_hull": ("relaxed_energy_above_hull", "energy_above_hull"),
}
"""Columns that measure a condition of another name; the first that is there."""
_ENERGIES = tuple(name for name, columns in _COLUMNS.items() if columns[0].startswith("relaxed_"))
_COMPOSITIONS = ("composition", "formula")
_EXACT = ("num_atoms", "num_elements")
FORMULA = re.compile(r"([A-Z(\[{].*?)(?: x \d+)?")
"""The formula in the label of a request, as it was typed: `LiFePO4 x 4`, `K4(Fe(CN)6)`. Labels of rules for elements
are words and begin with a small letter (`generators/asks.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """A condition that is measured."""

    column: str
    """Name of the column that measures it."""
    tolerance: str
    """In words."""
    rates: HitRate
    hits: list[bool | None]
    """Of the structures that were asked for it; None where the value is not known."""


def asked_values(crystals: Crystals) -> dict[str, list[str | None]]:
    """Values that were asked for, by name, as text, for each crystal; None where that was not asked.

    Raises:
        ValueError: when the folder's table has conditions that nobody can have written so.
    """
    asked: dict[str, list[str | None]] = {}
    if crystals.sampling is None:
        return asked
    nothing = (None,) * len(crystals)
    labels = zip(crystals.labels.get("ask", nothing), crystals.labels.get("conditions", nothing), strict=True)
    for place, (label, conditions) in enumerate(labels):
        given: dict[str, str] = {}
        if label is not None and (match := FORMULA.fullmatch(str(label))):
            given["formula"] = match[1]
        if conditions is not None:
            try:
                pairs = split_request(str(conditions))
            except ValueError as error:
                raise ValueError(f"{crystals.name}, sample {crystals.ids[place]}: {error}") from error
            given |= {CANONICAL_NAMES.get(name, name): str(value) for name, value in pairs}
        for name, value in given.items():
            asked.setdefault(name, [None] * len(crystals))[place] = value
    return asked


def check_tolerances(
    tolerances: Mapping[str, float], crystals: Crystals, *, has_energies: bool = False
) -> None:
    """Refuses tolerances of what was not asked, and energies that were asked to be 0 without one.

    Args:
        tolerances: as given.
        crystals: which were asked.
        has_energies: whether energies will be measured; what is asked of them is else not judged.

    Raises:
        ValueError: for another name, a negative tolerance, an energy of 0 without tolerance, or what `asked_values`
            refuses.
    """
    known = asked_values(crystals)
    for name, value in tolerances.items():
        if CANONICAL_NAMES.get(name, name) not in known:
            asked = ", ".join(known) or "nothing (SOURCE is no folder of `latentite sample` with conditions)"
            raise ValueError(
                f"--tolerance must name what the samples were asked, which is {asked}, got {name}"
            )
        if not 0.0 <= value < float("inf"):
            raise ValueError(f"--tolerance {name} must be a number of at least 0, got {value}")
    given = {CANONICAL_NAMES.get(name, name) for name in tolerances}
    for name in _ENERGIES if has_energies else ():
        if name in known and name not in given:
            _refuse_zero(name, _numbers([value for value in known[name] if value is not None]))


def _refuse_zero(name: str, targets: np.ndarray | None) -> None:
    """Refuse a target of 0 without tolerance, of which 5 % is 0, so that nothing but exactly 0 would hit.

    Raises:
        ValueError: saying so.
    """
    if targets is not None and bool((targets == 0.0).any()):
        raise ValueError(
            f"--tolerance {name}=NUMBER must be given, in the unit of the property, since samples were asked for "
            f"{name} = 0: the default of {100 * RELATIVE_TOLERANCE:g} % of the value is 0 there, and nothing would hit"
        )


def condition_section(tolerances: Mapping[str, float]) -> MakeSection:
    """The section; empty where nothing was asked.

    Args:
        tolerances: absolute, in the unit of each property; the others have `RELATIVE_TOLERANCE`.
    """
    tolerances = {CANONICAL_NAMES.get(name, name): value for name, value in tolerances.items()}

    def make(work: Work, table: Mapping[str, list[Cell]]) -> Section:
        """Every condition beside the column that measures it."""
        columns: Table = {}
        counted: list[Counted] = []
        content: dict[str, Any] = {"tolerances": dict(tolerances), "measured": {}, "not_measured": {}}
        for name, values in asked_values(work.crystals).items():
            places = [place for place, value in enumerate(values) if value is not None]
            targets = [value for value in values if value is not None]
            judged = _judge(name, places, targets, work, table, tolerances.get(name))
            if judged is None:
                content["not_measured"][name] = len(places)
                continue
            content["measured"][name] = _to_plain(judged)
            empty: list[Cell] = [None] * len(values)
            columns[f"asked_{name}"] = list(values)
            hits, strict = f"hit_{name}", f"hit_{name}_strict"
            columns[hits], columns[strict] = empty.copy(), empty.copy()
            for place, hit in zip(places, judged.hits, strict=True):
                columns[hits][place], columns[strict][place] = hit, bool(hit)
            words = f"{name} as asked ({judged.tolerance})"
            counted.append(Counted(column=strict, label=f"{words}, unknown ones count as missed"))
            counted.append(Counted(column=hits, label=f"{words}, of known ones"))
        if not (content["measured"] or content["not_measured"]):
            return Section()
        content["without_structure"] = len(work.crystals.rejections)
        return Section(
            columns=columns,
            counted=tuple(counted),
            summary={"conditions": content},
            page=lambda: _page(content),
        )

    return make


def _judge(
    name: str,
    places: Sequence[int],
    targets: Sequence[str],
    work: Work,
    table: Mapping[str, list[Cell]],
    tolerance: float | None,
) -> _Judged | None:
    """None when no column measures it."""
    if name in _COMPOSITIONS:
        return _compositions(places, targets, work)
    if name == "chemical_system":
        systems = [frozenset(str(table[name][place]).split("-")) for place in places]
        wanted = [frozenset(target.split("-")) for target in targets]
        hits: list[bool | None] = [one == other for one, other in zip(systems, wanted, strict=True)]
        return _named(name, hits, "the same elements")
    column = next((c for c in _COLUMNS.get(name, (name,)) if c in table), None)
    if column is None:
        return None
    cells = [table[column][place] for place in places]
    numbers = _numbers(targets)
    is_numeric = all(
        isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells if cell is not None
    )
    if numbers is None or not is_numeric:
        hits = [None if cell is None else str(cell) == t for cell, t in zip(cells, targets, strict=True)]
        return _named(column, hits, "equal")
    is_exact = tolerance is None and (name in _EXACT or column.startswith("space_group_"))
    if tolerance is None and not is_exact:
        _refuse_zero(name, numbers)
    absolute = tolerance or 0.0
    relative = RELATIVE_TOLERANCE if tolerance is None and not is_exact else 0.0
    achieved = np.array([np.nan if cell is None else cell for cell in cells], dtype=float)
    within = numeric_hits(achieved, numbers, absolute_tolerance=absolute, relative_tolerance=relative)
    words = f"within {tolerance:g}" if tolerance is not None else f"within {100 * relative:g} %"
    return _Judged(
        column=column,
        tolerance="equal" if is_exact else words,
        rates=numeric_hit_rate(achieved, numbers, absolute_tolerance=absolute, relative_tolerance=relative),
        hits=[bool(hit) if known else None for hit, known in zip(within, np.isfinite(achieved), strict=True)],
    )


def _named(column: str, hits: list[bool | None], words: str) -> _Judged:
    rates = categorical_hit_rate(hits, True)
    return _Judged(column=column, tolerance=words, rates=rates, hits=hits)


def _compositions(places: Sequence[int], targets: Sequence[str], work: Work) -> _Judged | None:
    """Fractions of the elements; None when a target is no formula."""
    try:
        wanted = [parse_amounts(target) for target in targets]
    except ValueError:
        return None
    hits: list[bool | None] = []
    for place, target in zip(places, wanted, strict=True):
        total = sum(count for _, count in work.measured.compositions[place])
        whole = sum(target.values())
        difference = {ATOMIC_NUMBER[symbol]: -amount / whole for symbol, amount in target.items()}
        for number, count in work.measured.compositions[place]:
            difference[number] = difference.get(number, 0.0) + count / total
        hits.append(max(map(abs, difference.values())) <= FRACTION_TOLERANCE)
    return _named("formula", hits, "the same formula")


def _numbers(texts: Sequence[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _to_plain(judged: _Judged) -> dict[str, Any]:
    rates = judged.rates
    return {
        "column": judged.column,
        "tolerance": judged.tolerance,
        "strict": rates.strict.to_plain(),
        "known": rates.known.to_plain(),
        "unknown": rates.unknown.to_plain(),
        "mean_absolute_error": finite(rates.mean_absolute_error),
    }


def _page(content: Mapping[str, Any]) -> str:
    def share(rate: Mapping[str, Any]) -> str:
        return str(Rate(numerator=rate["numerator"], denominator=rate["denominator"]))

    head = ["asked", "measured by", "hit when", "of all", "of known ones", "mean absolute error"]
    rows = [
        [
            *(name, one["column"], one["tolerance"]),
            *(share(one["strict"]), share(one["known"]), number_text(one["mean_absolute_error"])),
        ]
        for name, one in content["measured"].items()
    ]
    missing = ", ".join(
        f"{escape(name)} ({count:,} structures)" for name, count in content["not_measured"].items()
    )
    parts = [f"<h2>Conditions</h2>{html_table(head, rows, num_labels=3)}"]
    if missing:
        parts.append(f"<p>Asked, but not measured here: {missing}.</p>")
    if content["without_structure"]:
        count = f"{content['without_structure']:,}"
        parts.append(f"<p class='small'>{count} requests gave no structure and are not counted here.</p>")
    return "".join(parts)
