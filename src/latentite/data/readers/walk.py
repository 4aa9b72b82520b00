"""The walk over a source: its rows go out to work in chunks and come back in order, each with its outcome.

`walk` hands the records of a stream to any work, in this process or in several, with a bounded number of chunks
under way; `pair` puts every row beside what became of it. Whatever reads crystals (training, evaluation,
prediction, starts of samples, hulls) goes this way, so that a row is nowhere lost or taken for its neighbour.

Does not import torch: worker processes start light.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from latentite.base.processes import count_workers, process_context, start_worker
from latentite.data.readers.records import Record, Rejection

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
