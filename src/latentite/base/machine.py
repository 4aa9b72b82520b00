"""The machine at hand: the device that a network runs on, and the processes that share work in Python.

Parsing, symmetry and structure matching are Python code and gain from processes; networks do not come there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 256
"""Crystals at once, unless something else is asked for."""


def resolve_device(name: str, *, needs_float64: bool = False) -> torch.device:
    """The device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: `auto`, or as torch writes it.
        needs_float64: whether the network holds numbers of double precision, which MPS does not have.

    Raises:
        ValueError: for a device that is not there, or that cannot hold the numbers.
    """
    import torch  # takes seconds, and what only prints a help text imports this module too

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available() and not needs_float64
    if name == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {name}") from None
    if device.type == "mps" and needs_float64:
        raise ValueError(
            f"device must be one with double precision for this network, got {name}; use auto or cpu"
        )
    is_there = {
        "cpu": True,
        "mps": has_mps,
        "cuda": has_cuda and (device.index or 0) < torch.cuda.device_count(),
    }
    if not is_there.get(device.type, False):
        raise ValueError(f"device must be one that torch sees, got {name}; use auto or cpu")
    return device


Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_context() -> BaseContext:
    """Linux forks: the workers use numpy and its like only, and a user's script needs no __main__ guard.

    Elsewhere forking is unsafe or impossible.
    """
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def network_context(*preload: str) -> BaseContext:
    """Processes that compute with torch: forked by a server that has imported these modules once and done nothing else.

    A process in which torch has computed cannot be forked itself: its threads and its GPU do not come along. Each
    spawned one imports torch anew, for seconds. The server starts with the first process and ends with this one.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def end_with_parent() -> None:
    """In a process of `network_context`: leave Ctrl-C to the parent, and end when the parent does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when the parent does: a killed one cannot tell its workers to
    stop."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def count_workers(workers: int | None) -> int:
    """Processes that are asked for; None stands for all cores that this process may use.

    Raises:
        ValueError: for less than one.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return available_cores() if workers is None else workers


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    advance: Callable[[Item], None] = lambda item: None,
    keep: Callable[[Item, Result], None] = lambda item, result: None,
    context: BaseContext | None = None,
) -> list[Result]:
    """`[function(item) for item in items]`, in this process or in several.

    Args:
        function: without side effects; a module's function or a `functools.partial` of one.
        items: each worth some milliseconds at least; the dear ones first keep all workers busy to the end.
        workers: processes; None for all cores. One, or a single item, stays in this process.
        advance: told each item that is done, in the order in which they end (progress bars).
        keep: given each item and its result before `advance` is told, in this process.
        context: how processes start; that of `process_context` when None.

    Raises:
        ValueError: when workers is below 1, or a worker process dies (usually for want of memory).
    """
    workers = count_workers(workers)
    results: list[Result] = []
    if workers == 1 or len(items) < 2:
        for item in items:
            results.append(function(item))
            keep(item, results[-1])
            advance(item)
        return results
    with ProcessPoolExecutor(
        min(workers, len(items)),
        mp_context=context or process_context(),
        initializer=start_worker,
        initargs=(os.getpid(),),
    ) as pool:
        futures = [pool.submit(function, item) for item in items]
        positions = {future: position for position, future in enumerate(futures)}
        try:
            for future in as_completed(futures):
                item = items[positions[future]]
                keep(item, future.result())
                advance(item)
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process died, usually for want of memory; give fewer --workers"
            ) from error
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]
