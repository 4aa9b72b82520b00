"""The walk of an evaluation: read, measure each structure, compare, count. `latentite.evaluate` in Python.

    from latentite import evaluate
    result = evaluate("samples/", reference="mp_20", protocol="chemeleon2", out="report")
    print(result.rates["unique"])

In = scored + failed. A structure that one metric fails on keeps the others: that cell stays empty, the failure is
listed with its reason, and the rate's denominator leaves it out and says so. Energies and relaxation are to come
between reading and measuring. Comes after `read.py` and `protocols.py`; `report.py` writes what is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentite.data.properties import SYMPREC
from latentite.evaluation.measure import Measured, measure
from latentite.evaluation.protocols import MATCHERS, Protocol, find_protocol
from latentite.evaluation.read import Crystals, read_crystals
from latentite.match.search import Matches, find_matches
from latentite.metrics.rates import Rate

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

    from latentite.crystal import CrystalBatch

RELAXATIONS = ("none",)
"""What `relax` may be."""

Stage = Callable[[str, int | None], Callable[[int], None]]
"""Told that a step of so many structures (None: unknown) begins; gives what to tell of those that are done."""

Cell = float | int | bool | str | None
"""A cell of the table; None where a metric gave nothing."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One row per structure, and what was counted."""

    crystals: Crystals
    reference: Crystals | None
    protocol: Protocol
    relax: str
    table: dict[str, list[Cell]]
    """Columns, in the order of the crystals."""
    failures: tuple[Failure, ...]
    rates: dict[str, Rate]
    """Of the structures for which the metric has a value; `readable` and `valid_unique_novel` of all that came
    in."""
    measured: Measured
    reference_measured: Measured | None
    reference_failures: dict[str, str]
    """Structures of the reference that could not be compared, by id."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each step."""

    def column(self, name: str) -> np.ndarray:
        """A column as numbers, NaN where it is empty."""
        return np.array([np.nan if cell is None else cell for cell in self.table[name]], dtype=float)


def silent(text: str, total: int | None) -> Callable[[int], None]:
    """A `Stage` that says nothing."""
    return lambda count: None


def evaluate(
    source: str | Path | Sequence[Structure | Atoms] | CrystalBatch,
    *,
    reference: str | Path | Sequence[Structure | Atoms] | CrystalBatch | None = None,
    protocol: str = "default",
    relax: str = "none",
    out: str | Path | None = None,
    split: str = "test",
    reference_split: str = "train",
    workers: int | None = None,
    seed: int = 0,
    stage: Stage = silent,
) -> Evaluation:
    """Evaluate crystals, and write the report when `out` names a folder.

    Args:
        source: whatever the readers take: a folder or zip of CIFs, an extxyz, a table, ...; the name of a
            dataset; structures in memory.
        reference: what is known already, likewise; without it there is no novelty.
        protocol: one of `PROTOCOLS`.
        relax: `none`; energies and relaxation are not built yet.
        out: folder of the report; None writes nothing.
        split: of the source, where it has splits: train, val, test or all.
        reference_split: of the reference, likewise.
        workers: processes; None for all cores. They do not change the result.
        seed: draws the structures of the report's gallery.
        stage: hears of progress.

    Raises:
        FileNotFoundError: when a path or dataset does not exist.
        ValueError: for an unknown protocol, split or relaxation, or a source without any row.
    """
    chosen = find_protocol(protocol)
    if relax not in RELAXATIONS:
        raise ValueError(
            f"--relax must be {', '.join(RELAXATIONS)}, got {relax!r}: energies and relaxation are not built yet"
        )
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out must be a folder, got the file {out}")
    seconds: dict[str, float] = {}
    with _timed(seconds, "read"):
        crystals = read_crystals(source, split=split, advance=stage("read structures", None))
        if crystals.num_in == 0:
            raise ValueError(f"SOURCE must hold at least one structure, got none in {crystals.name}")
        known = None
        if reference is not None:
            known = read_crystals(reference, split=reference_split, advance=stage("read the reference", None))
            if not len(known):
                raise ValueError(f"--reference must hold a usable crystal, got none in {known.name}")
    measured = measure(crystals, workers=workers, seconds=seconds, stage=stage)
    known_measured = None
    if known is not None:
        known_measured = measure(
            known,
            workers=workers,
            seconds=seconds,
            stage=stage,
            symprecs=(SYMPREC,),
            name="reference: ",
            keep=True,
        )
    with _timed(seconds, "match"):
        matches = find_matches(
            crystals.arrays,
            known.arrays if known is not None else (),
            settings=MATCHERS,
            workers=workers,
            advance=stage("match structures", len(crystals)),
        )
    table = make_table(crystals, known, chosen, measured, known_measured, matches)
    result = Evaluation(
        crystals=crystals,
        reference=known,
        protocol=chosen,
        relax=relax,
        table=table,
        failures=tuple(_failures(crystals, measured, matches)),
        rates=count_rates(table, crystals),
        measured=measured,
        reference_measured=known_measured,
        reference_failures={known.ids[p]: r for p, r in matches.reference_failures.items()} if known else {},
        seconds=seconds,
    )
    if out is not None:
        from latentite.evaluation.report import write_report

        stage("write the report", None)
        with _timed(seconds, "report"):
            write_report(result, out, seed=seed)
    return result


def make_table(
    crystals: Crystals,
    reference: Crystals | None,
    protocol: Protocol,
    measured: Measured,
    reference_measured: Measured | None,
    matches: Matches,
) -> dict[str, list[Cell]]:
    """Every column; those of novelty only with a reference."""
    table: dict[str, list[Cell]] = {
        "id": list(crystals.ids),
        "source": list(crystals.sources),
        "row": list(crystals.rows),
        **measured.columns(),
    }
    distance = (
        np.minimum(measured.distance, measured.own_distance) if protocol.own_images else measured.distance
    )
    far, big = distance >= protocol.min_distance, measured.volume >= protocol.min_volume
    known_distance = np.isfinite(measured.own_distance)
    table["min_distance_ok"] = [bool(f) if k else None for f, k in zip(far, known_distance, strict=True)]
    table["volume_ok"] = [bool(b) for b in big]
    # A cell too flat to be reduced has no known distance, and is no valid structure either way.
    table["structure_valid"] = [bool(v) for v in far & big & known_distance]
    table["composition_valid"] = table[protocol.smact.value]
    table["valid"] = _all_of(table["structure_valid"], table["composition_valid"])
    for settings in MATCHERS:
        verdicts, name = matches.verdicts[settings.name], settings.name
        table[f"unique_{name}"] = [None if v is None else v.duplicate_of is None for v in verdicts]
        table[f"duplicate_of_{name}"] = [
            None if v is None or v.duplicate_of is None else crystals.ids[v.duplicate_of] for v in verdicts
        ]
        if reference is not None:
            table[f"novel_{name}"] = [None if v is None else v.reference is None for v in verdicts]
            table[f"matched_reference_{name}"] = [
                None if v is None or v.reference is None else reference.ids[v.reference] for v in verdicts
            ]
    table["unique"] = table[f"unique_{protocol.matcher.name}"]
    if reference is not None and reference_measured is not None:
        formulas = set(reference_measured.formulas)
        table["new_formula"] = [formula not in formulas for formula in measured.formulas]
        table["novel"] = table[f"novel_{protocol.matcher.name}"]
        table["valid_unique_novel"] = _all_of(table["valid"], table["unique"], table["novel"])
    return table


def _all_of(*columns: Sequence[Cell]) -> list[Cell]:
    """Whether all are true: one "no" decides, else one unknown leaves it unknown."""
    return [False if False in row else (None if None in row else True) for row in zip(*columns, strict=True)]


COUNTED = (
    "min_distance_ok",
    "volume_ok",
    "structure_valid",
    "smact_pauling",
    "smact_icsd24",
    "composition_valid",
    "valid",
    "unique",
    "unique_strict",
    "unique_loose",
    "novel",
    "novel_strict",
    "novel_loose",
    "new_formula",
)
"""Columns of yes and no that become rates, of the structures that have a value."""


def count_rates(table: dict[str, list[Cell]], crystals: Crystals) -> dict[str, Rate]:
    """Every rate; its denominator holds what the metric has a value for, or all that came in."""
    rates = {"readable": Rate(numerator=len(crystals), denominator=crystals.num_in)}
    for name in COUNTED:
        if name in table:
            known = [cell for cell in table[name] if cell is not None]
            rates[name] = Rate(numerator=sum(map(bool, known)), denominator=len(known))
    groups = [cell for cell in table[f"space_group_{SYMPREC:g}"] if cell is not None]
    rates["symmetric"] = Rate(numerator=sum(cell != 1 for cell in groups), denominator=len(groups))
    if "valid_unique_novel" in table:
        count = sum(cell is True for cell in table["valid_unique_novel"])
        rates["valid_unique_novel"] = Rate(numerator=count, denominator=crystals.num_in)
    return rates


def _failures(crystals: Crystals, measured: Measured, matches: Matches) -> Iterator[Failure]:
    for item in crystals.rejections:
        yield Failure(source=item.source, row=item.row, id=item.id, step="read", reason=item.reason)
    steps: list[tuple[int, str, str]] = [
        *measured.failures,
        *((position, "match", reason) for position, reason in matches.failures.items()),
    ]
    for position, step, reason in sorted(steps):
        yield Failure(
            source=crystals.sources[position],
            row=crystals.rows[position],
            id=crystals.ids[position],
            step=step,
            reason=reason,
        )


@contextmanager
def _timed(seconds: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)
