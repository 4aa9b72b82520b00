"""The result of an evaluation: its sections, the one table, rates and failures made of them, and `summary.json`.

A section is a function of what is evaluated (`Work`) and of the columns so far; it gives new columns, says which of
them are counted, and what it adds to the summary and the page. A new group of metrics is one such function in the
list `SECTIONS` of `run.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from latentite import __version__
from latentite.evaluation.measure import BeginStep, Cell, Measured
from latentite.evaluation.options import MATCHERS, Protocol
from latentite.evaluation.read import Crystals
from latentite.metrics.geometry import SYMPRECS
from latentite.metrics.rates import Rate

Table = dict[str, list[Cell]]
"""Columns by name, in the order of the crystals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The inputs of every section: crystals, reference, protocol, and how to work."""

    crystals: Crystals
    reference: Crystals | None
    protocol: Protocol
    measured: Measured
    reference_measured: Measured | None
    workers: int | None
    seed: int
    stage: BeginStep
    seconds: dict[str, float]
    """Takes the wall time of steps (`timed`)."""


class Denominator(StrEnum):
    """The structures that a rate is a share of."""

    KNOWN = "known"
    """The structures that the column has a value for."""
    ALL_IN = "all in"
    """Everything that came in, unreadable structures included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """A column of yes and no that becomes a rate of the same name."""

    column: str
    label: str | None = None
    """For the page and the terminal; None for a rate that only the summary has."""
    denominator: Denominator = Denominator.KNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One group of metrics: its columns, rates, failures, and parts of summary, terminal and page."""

    columns: Table = field(default_factory=dict)
    """A value for each crystal; empty cells are explained by `failures`, or need no explanation."""
    counted: tuple[Counted, ...] = ()
    failures: tuple[tuple[int, str, str], ...] = ()
    """Position, metric and reason of what could not be computed."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `summary.json`; plain values, null for numbers that do not exist."""
    lines: tuple[tuple[str, str], ...] = ()
    """Label and value of what the terminal shows after the rates."""
    page: Callable[[], str] = lambda: ""
    """HTML that stands after the rates; only made when a report is written."""
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Files of the report by name, and what writes each to a path."""


MakeSection = Callable[[Work, Mapping[str, list[Cell]]], Section]
"""Gets the columns of the sections before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A structure that a step failed on, and why."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    step: str
    """`read` for what is no crystal at all and has no row in the table; else the metric."""
    reason: str


def make_table(work: Work, makers: Iterable[MakeSection]) -> tuple[Table, tuple[Section, ...]]:
    """All columns, and the sections that they come from."""
    table: Table = {}
    sections = []
    for make in makers:
        section = make(work, table)
        for name, column in section.columns.items():
            assert name not in table, f"two sections give the column {name}"
            assert len(column) == len(work.crystals), f"the column {name} has {len(column)} cells"
        table |= section.columns
        sections.append(section)
    return table, tuple(sections)


def all_of(*columns: Sequence[Cell]) -> list[Cell]:
    """True where all are true: one "no" decides, else one unknown leaves it unknown."""
    return [False if False in row else (None if None in row else True) for row in zip(*columns, strict=True)]


def count_rates(
    table: Mapping[str, Sequence[Cell]], counted: Iterable[Counted], *, num_in: int
) -> dict[str, Rate]:
    """The rate of each counted column, in that order."""
    rates = {}
    for item in counted:
        known = [cell for cell in table[item.column] if cell is not None]
        total = num_in if item.denominator is Denominator.ALL_IN else len(known)
        rates[item.column] = Rate(numerator=sum(map(bool, known)), denominator=total)
    return rates


def list_failures(crystals: Crystals, sections: Iterable[Section]) -> Iterator[Failure]:
    """Failures: rows that could not be read, then structures that a metric failed on, in their order."""
    for item in crystals.rejections:
        yield Failure(source=item.source, row=item.row, id=item.id, step="read", reason=item.reason)
    for position, step, reason in sorted(entry for section in sections for entry in section.failures):
        yield Failure(
            source=crystals.sources[position],
            row=crystals.rows[position],
            id=crystals.ids[position],
            step=step,
            reason=reason,
        )


def finite(value: float) -> float | None:
    """The number itself, or None where there is none."""
    return value if math.isfinite(value) else None


_PACKAGES = ("pymatgen", "pymatgen-core", "smact", "spglib", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One row per structure, and what was counted."""

    crystals: Crystals
    reference: Crystals | None
    protocol: Protocol
    relax: str
    table: Table
    """Columns, in the order of the crystals."""
    failures: tuple[Failure, ...]
    rates: dict[str, Rate]
    """Of the structures for which the metric has a value; `readable` and `valid_unique_novel` of all that came
    in."""
    labels: dict[str, str]
    """Words for those rates that people are shown, in their order."""
    sections: tuple[Section, ...]
    """One for each group of metrics: its part of summary and page."""
    measured: Measured
    reference_measured: Measured | None
    seconds: dict[str, float]
    """Wall time of each step."""

    def column(self, name: str) -> np.ndarray:
        """A column as numbers, NaN where it is empty."""
        return np.array([np.nan if cell is None else cell for cell in self.table[name]], dtype=float)


def summary(result: Evaluation) -> dict[str, Any]:
    """Plain values for `summary.json`; numbers that do not exist are null."""
    crystals, protocol = result.crystals, result.protocol
    rates: dict[str, Any] = {}
    for name, rate in result.rates.items():
        rates[name] = {"label": result.labels.get(name), **rate.to_plain()}
        if rate.denominator < len(crystals):
            rates[name]["not_computed"] = len(crystals) - rate.denominator
    content: dict[str, Any] = {
        "source": crystals.name,
        "source_content_hash": crystals.content_hash,
        "num_in": crystals.num_in,
        "num_scored": len(crystals),
        "num_failed": len(crystals.rejections),
        "failures_by_step": dict(Counter(item.step for item in result.failures)),
        "protocol": {
            "name": protocol.name,
            "note": protocol.note,
            "matcher": protocol.matcher.name,
            "composition_rule": protocol.composition_rule.value,
            "min_distance": protocol.min_distance,
            "min_volume": protocol.min_volume,
            "own_images": protocol.own_images,
            "judges_relaxed": protocol.judges_relaxed,
            "stable_below": protocol.stable_below,
            "msun": protocol.msun,
        },
        "relax": result.relax,
        "rates": rates,
        "symprecs": list(SYMPRECS),
        "matchers": {m.name: {"ltol": m.ltol, "stol": m.stol, "angle_tol": m.angle_tol} for m in MATCHERS},
        "reference": None,
        "versions": {"latentite": __version__, **{name: _version(name) for name in _PACKAGES}},
        "seconds": result.seconds,
    }
    if result.reference is not None:
        content["reference"] = {
            "name": result.reference.name,
            "content_hash": result.reference.content_hash,
            "num_structures": len(result.reference),
            "num_failed": len(result.reference.rejections),
        }
    for section in result.sections:
        content |= section.summary
    return content


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
