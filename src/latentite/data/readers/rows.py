"""Any source of crystals to rows of arrays, or to rejections with a reason: the one way in.

    for item in read("folder_or_table", limits=Limits(max_atoms=20)):
        if isinstance(item, Rejection): ...

Every row of a source comes out exactly once, as a `Row` or a `Rejection`; only a source that is unusable as a whole
raises. `read` is for single crystals, `data/source_rows.py` for data sets; both open a source with
`opening.open_records`, parse its records with `parse_many`, and send them along `walk`: chunks go out to work, in this
process or in several with a bounded number of chunks under way, and come back in order, where `pair` puts every row
beside its outcome, so that a row is nowhere lost or taken for its neighbour.

Does not import torch: worker processes start light.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from latentite.base.machine import count_workers, process_context, start_worker
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits, refusals
from latentite.data.readers.cif import parse_p1
from latentite.data.readers.cif_crystal import read_crystal
from latentite.data.readers.opening import open_records
from latentite.data.readers.poscar import parse_poscar
from latentite.data.readers.records import PayloadKind, Record, Rejection, Source, Value, words_of
from latentite.elements import ATOMIC_NUMBER

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One crystal that was read and is within the limits; cell, origin and order of atoms as in the
    source."""

    source: str
    row: int
    """Position within the source, from 0."""
    id: str
    atomic_numbers: np.ndarray
    """[atom] int64."""
    frac_coords: np.ndarray
    """[atom 3] float64, not wrapped."""
    lattice: np.ndarray
    """[3 3] float64, row vectors in Å."""
    properties: dict[str, Value] = field(default_factory=dict)


def read(source: Source, *, limits: Limits | None = None) -> Iterator[Row | Rejection]:
    """Every row of a source, in order: a file, a folder, or a list of pymatgen structures or ASE atoms.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source as a whole is unusable (unknown format, no structure column, ...).
    """
    return parse_rows(open_records(source), limits or Limits())


def parse_rows(records: Iterator[Record | Rejection], limits: Limits) -> Iterator[Row | Rejection]:
    """Each record as a row or a rejection, in order."""
    for chunk, outcomes in walk(records, partial(parse_many, limits=limits)):
        for item in pair(chunk, outcomes):
            if isinstance(item, Rejection):
                yield item
                continue
            record, crystal = item
            yield Row(
                source=record.source,
                row=record.row,
                id=record.id,
                atomic_numbers=crystal.atomic_numbers,
                frac_coords=crystal.frac_coords,
                lattice=crystal.lattice,
                properties=record.properties,
            )


def parse_many(records: Sequence[Record], limits: Limits) -> list[CrystalArrays | str]:
    """For each record its arrays, or the reason why it is rejected."""
    outcomes: list[CrystalArrays | str] = []
    for record in records:
        try:
            outcomes.append(arrays_of(record))
        except ValueError as error:
            outcomes.append(str(error))
    readable = [position for position, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    reasons = refusals([cast("CrystalArrays", outcomes[position]) for position in readable], limits)
    for position, reason in zip(readable, reasons, strict=True):
        if reason is not None:
            outcomes[position] = reason
    return outcomes


def arrays_of(record: Record) -> CrystalArrays:
    """Arrays of one record, unchecked.

    Raises:
        ValueError: with the reason, when the payload cannot be read or is no ordered crystal.
    """
    if record.kind is PayloadKind.CIF:
        text = cast("str", record.payload)
        return parse_p1(text) or read_crystal(text)
    if record.kind is PayloadKind.ARRAYS:
        return cast("CrystalArrays", record.payload)
    if record.kind is PayloadKind.STRUCTURE:
        return _from_structure(cast("Structure", record.payload))
    if record.kind is PayloadKind.STRUCTURE_DICT:
        return _from_structure(_structure_from_dict(cast("dict[str, Any]", record.payload)))
    if record.kind is PayloadKind.POSCAR:
        return parse_poscar(cast("str", record.payload))
    if record.kind is PayloadKind.EXTXYZ:
        return _from_atoms(_atoms_from_extxyz(cast("str", record.payload)))
    return _from_atoms(cast("Atoms", record.payload))


def _structure_from_dict(content: dict[str, Any]) -> Structure:
    from pymatgen.core import Structure

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Structure.from_dict(content)
        except Exception as error:  # from_dict raises nearly every builtin type on broken input
            raise ValueError(f"unreadable structure: {words_of(error)}") from error


def _atoms_from_extxyz(text: str) -> Atoms:
    from ase.io import read as ase_read

    try:
        return cast("Atoms", ase_read(io.StringIO(text), format="extxyz"))
    except KeyError as error:
        raise ValueError(f"unreadable extxyz frame: {error.args[0]!r} is no element") from error
    except Exception as error:  # ASE raises nearly every builtin type
        raise ValueError(f"unreadable extxyz frame: {words_of(error)}") from error


def _from_structure(structure: Structure) -> CrystalArrays:
    if not structure.is_ordered:
        site = next(site for site in structure if not site.is_ordered)
        raise ValueError(f"partial occupancy: {site.species_string} on one site")
    elements = [getattr(specie, "element", specie) for specie in structure.species]
    isotopes = {"D", "T"} & {getattr(element, "name", "") for element in elements}  # their symbol is "H"
    if isotopes:
        raise ValueError(f"isotope {min(isotopes)}: the element classes know no isotopes; write it as H")
    dummies = [str(element) for element in elements if getattr(element, "symbol", "") not in ATOMIC_NUMBER]
    if dummies:  # pymatgen gives what is no element a number that differs from run to run
        raise ValueError(f"{dummies[0]!r} is no element; give each site an element symbol")
    numbers = [element.Z for element in elements]
    lattice = np.array(structure.lattice.matrix, dtype=np.float64)
    coords = np.array(structure.frac_coords, dtype=np.float64)
    return CrystalArrays(np.array(numbers, dtype=np.int64), coords, lattice)


def _from_atoms(atoms: Atoms) -> CrystalArrays:
    _check_occupancy(atoms.info.get("occupancy"))
    if not atoms.numbers.all():
        raise ValueError("'X', a placeholder of ASE, is no element")
    lattice = np.array(atoms.cell, dtype=np.float64)
    if not atoms.pbc.all():
        raise ValueError(f"not periodic in all three directions (pbc = {atoms.pbc.tolist()})")
    if not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
        raise ValueError("absurd cell: its volume is zero or not a number")
    coords = np.linalg.solve(lattice.T, np.asarray(atoms.positions, dtype=np.float64).T).T
    return CrystalArrays(np.array(atoms.numbers, dtype=np.int64), coords, lattice)


def _check_occupancy(occupancy: object) -> None:
    """ASE's table of sites with several elements on them, which `Atoms` itself cannot say."""
    if occupancy is None:
        return
    sites = list(occupancy.values()) if isinstance(occupancy, Mapping) else [occupancy]
    for site in sites:
        is_full = isinstance(site, Mapping) and len(site) == 1 and next(iter(site.values())) in (1, 1.0)
        if not is_full:
            raise ValueError(f"partial occupancy: {site} on one site")


# ------------------------------------------------------------------------------------------- walk


CHUNK = 512
"""Rows per task: some tens of milliseconds of work, so that handing over costs nothing."""
_WORTH_A_POOL = 4 * CHUNK

Chunk = list[Record | Rejection]
Result = TypeVar("Result")
Outcome = TypeVar("Outcome")


def walk(
    stream: Iterator[Record | Rejection],
    work: Callable[[list[Record]], Result],
    *,
    workers: int | None = 1,
    on_chunk: Callable[[int], None] | None = None,
) -> Iterator[tuple[Chunk, Result]]:
    """Each chunk of a stream with the result of the work on its records, in order.

    Args:
        stream: what `open_records` gives.
        work: gets the records of a chunk; with several processes it must be picklable.
        workers: number of processes; None for all cores that this process may use. Short streams stay in
            this process.
        on_chunk: called with the number of rows whenever a chunk is done (progress bars).

    Raises:
        ValueError: when a worker process dies (usually for want of memory), or workers is below 1.
    """
    workers = count_workers(workers)
    chunks = iter(lambda: list(islice(stream, CHUNK)), [])
    first = list(islice(chunks, _WORTH_A_POOL // CHUNK)) if workers > 1 else []
    if sum(map(len, first)) < _WORTH_A_POOL:
        results = _in_this_process(first, chunks, work)
    else:
        results = _in_processes(first, chunks, work, workers)
    for chunk, result in results:
        if on_chunk is not None:
            on_chunk(len(chunk))
        yield chunk, result


def pair(chunk: Chunk, outcomes: Sequence[Outcome | str]) -> Iterator[tuple[Record, Outcome] | Rejection]:
    """Every row of a chunk as the record with its outcome, or as a rejection.

    Args:
        chunk: records, and rows that were rejected when the source was opened.
        outcomes: one for each of the records, in order: a value, or a text that says why there is none.
    """
    assert len(outcomes) == len(_only_records(chunk)), "there must be as many outcomes as records"
    following = iter(outcomes)
    for item in chunk:
        if isinstance(item, Rejection):
            yield item
            continue
        outcome = next(following)
        if isinstance(outcome, str):
            yield Rejection(source=item.source, row=item.row, id=item.id, reason=outcome)
        else:
            yield item, outcome


def _only_records(chunk: Chunk) -> list[Record]:
    return [item for item in chunk if isinstance(item, Record)]


def _in_this_process(
    first: list[Chunk], chunks: Iterator[Chunk], work: Callable[[list[Record]], Result]
) -> Iterator[tuple[Chunk, Result]]:
    for source in (first, chunks):
        for chunk in source:
            yield chunk, work(_only_records(chunk))


def _in_processes(
    first: list[Chunk], chunks: Iterator[Chunk], work: Callable[[list[Record]], Result], workers: int
) -> Iterator[tuple[Chunk, Result]]:
    waiting: deque[tuple[Chunk, Future[Result]]] = deque()
    with ProcessPoolExecutor(
        workers, mp_context=process_context(), initializer=start_worker, initargs=(os.getpid(),)
    ) as pool:
        try:
            for source in (first, chunks):
                for chunk in source:
                    waiting.append((chunk, pool.submit(work, _only_records(chunk))))
                    while len(waiting) > 3 * workers:
                        done, future = waiting.popleft()
                        yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died while reading crystals, usually for want of memory; "
                "give fewer --workers"
            ) from error
        finally:
            for _, future in waiting:
                future.cancel()
