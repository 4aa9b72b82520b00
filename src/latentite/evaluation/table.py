"""Sections of an evaluation, and the one table, its rates and its failures that are made of them.

A section is a function of what is evaluated (`Work`) and of the columns so far; it gives new columns, says which of
them are counted, and what it adds to the summary and the page. A new group of metrics is one such function in the
list `SECTIONS` of `run.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from latentite.evaluation.measure import BeginStep, Cell, Measured
from latentite.evaluation.protocols import Protocol
from latentite.evaluation.read import Crystals
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
