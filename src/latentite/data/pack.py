"""Records to packed arrays, in this process or in several.

`pack` parses, checks and canonicalises a chunk of records and concatenates the crystals that survive;
`pack_all` does so for a whole stream, in order, with a bounded number of chunks under way, so that a source
of any length needs little memory. This module does not import torch: worker processes start light.

Comes after `table.py` and `canonical.py`, before `build.py`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import cast

import numpy as np

from latentite.data.canonical import canonicalize_many
from latentite.data.checks import Limits
from latentite.data.cif import Arrays
from latentite.data.records import Record, Rejection
from latentite.data.table import parse_many
from latentite.processes import count_workers, process_context, start_worker

CHUNK = 512
"""Records per task: some tens of milliseconds of work, so that handing over costs nothing."""
_WORTH_A_POOL = 4 * CHUNK


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """What a worker needs to know."""

    limits: Limits
    canonical: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """The outcome of one chunk: the accepted crystals atom by atom, and for every record its reason or
    None."""

    atomic_numbers: np.ndarray
    """[atom] int64."""
    frac_coords: np.ndarray
    """[atom 3] float32."""
    lattice: np.ndarray
    """[crystal 3 3] float32, row vectors in Å."""
    num_atoms: np.ndarray
    """[crystal] int64."""
    reasons: list[str | None]
    """Per record of the chunk: why it was rejected, None when accepted."""


def pack(records: list[Record], options: PackOptions) -> Packed:
    """Parse, check, canonicalise and concatenate one chunk."""
    outcomes = parse_many(records, options.limits)
    if options.canonical:
        outcomes = _canonicalize(outcomes)
    crystals = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    if not crystals:
        empty = np.zeros((0, 3), dtype=np.float32)
        numbers, coords, lattice = np.zeros(0, dtype=np.int64), empty, np.zeros((0, 3, 3), dtype=np.float32)
    else:
        numbers = np.concatenate([crystal[0] for crystal in crystals]).astype(np.int64)
        coords = np.concatenate([crystal[1] for crystal in crystals]).astype(np.float32)
        lattice = np.stack([crystal[2] for crystal in crystals]).astype(np.float32)
        coords[coords >= 1.0] -= 1.0  # 1 - 1e-9 is below one in float64 and one in float32
    return Packed(
        atomic_numbers=numbers,
        frac_coords=coords,
        lattice=lattice,
        num_atoms=np.array([len(crystal[0]) for crystal in crystals], dtype=np.int64),
        reasons=[outcome if isinstance(outcome, str) else None for outcome in outcomes],
    )


def _canonicalize(outcomes: list[Arrays | str]) -> list[Arrays | str]:
    """Canonical forms in place of crystals; one that has none becomes a reason, alone."""
    positions = [position for position, outcome in enumerate(outcomes) if not isinstance(outcome, str)]
    crystals = [cast("Arrays", outcomes[position]) for position in positions]
    result = list(outcomes)
    try:
        for position, crystal in zip(positions, canonicalize_many(crystals), strict=True):
            result[position] = crystal
    except (ValueError, ArithmeticError, RuntimeError):
        for position, crystal in zip(positions, crystals, strict=True):
            try:
                [result[position]] = canonicalize_many([crystal])
            except (ValueError, ArithmeticError, RuntimeError) as error:
                result[position] = f"no canonical form: {error}"
    return result


Chunk = list[Record | Rejection]


def _only_records(chunk: Chunk) -> list[Record]:
    return [item for item in chunk if isinstance(item, Record)]


def pack_all(
    stream: Iterator[Record | Rejection],
    options: PackOptions,
    *,
    workers: int | None = None,
    on_chunk: Callable[[int], None] | None = None,
) -> Iterator[tuple[Chunk, Packed]]:
    """Each chunk of the stream with its outcome, in order.

    Args:
        stream: what `open_records` gives.
        options: for the workers.
        workers: number of processes; None for all cores that this process may use. Short streams stay in
            this process.
        on_chunk: called with the number of rows whenever a chunk is done (progress bars).

    Raises:
        ValueError: when a worker process dies (usually for want of memory), or workers is below 1.
    """
    workers = count_workers(workers)
    chunks = iter(lambda: list(islice(stream, CHUNK)), [])
    first = list(islice(chunks, _WORTH_A_POOL // CHUNK))
    is_short = sum(map(len, first)) < _WORTH_A_POOL
    if workers == 1 or is_short:
        results = _in_this_process(first, chunks, options)
    else:
        results = _in_processes(first, chunks, options, workers)
    for chunk, packed in results:
        if on_chunk is not None:
            on_chunk(len(chunk))
        yield chunk, packed


def _in_this_process(
    first: list[Chunk], chunks: Iterator[Chunk], options: PackOptions
) -> Iterator[tuple[Chunk, Packed]]:
    for source in (first, chunks):
        for chunk in source:
            yield chunk, pack(_only_records(chunk), options)


def _in_processes(
    first: list[Chunk], chunks: Iterator[Chunk], options: PackOptions, workers: int
) -> Iterator[tuple[Chunk, Packed]]:
    waiting: deque[tuple[Chunk, Future[Packed]]] = deque()
    with ProcessPoolExecutor(
        workers, mp_context=process_context(), initializer=start_worker, initargs=(os.getpid(),)
    ) as pool:
        try:
            for source in (first, chunks):
                for chunk in source:
                    waiting.append((chunk, pool.submit(pack, _only_records(chunk), options)))
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
