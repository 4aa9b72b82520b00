"""Rewards in processes of their own, so that they overlap what the trainer does meanwhile.

Each component lives in one process for the length of a run, with its state and its caches, so that the number of
processes cannot matter; crystals are not divided, because a reward may compare them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from latentite.base.machine import start_worker
from latentite.base.plain import from_plain, to_plain
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.rewards.asking import Answer, ask
from latentite.rewards.combine import RewardConfig, Rewards, RewardTable


class RewardWorkers:
    """`Rewards` whose components are asked elsewhere; `close` ends the processes."""

    def __init__(self, config: RewardConfig, count: int) -> None:
        """Build the rewards here as well, so that mistakes show at once.

        Args:
            config: of the rewards.
            count: of processes; no more are started than there are components.
        """
        self._rewards = Rewards.build(config)
        self._plain = to_plain(config)
        names = list(config.named())
        count = min(count, len(names))
        self._shares = [names[worker::count] for worker in range(count)]
        self._reference: list[CrystalArrays] = []
        self._pools: list[ProcessPoolExecutor] = []

    def set_reference(self, crystals: CrystalBatch) -> None:
        """Start the processes and show them the training set; what goes wrong there is raised here."""
        self._reference = crystals.to_arrays()
        self._pools = [self._pool() for _ in self._shares]
        for ready in [self._prepare(worker) for worker in range(len(self._shares))]:
            ready.result()

    def start(
        self, crystals: CrystalBatch, is_usable: Bool[Tensor, " crystal"] | None = None
    ) -> Callable[[], RewardTable]:
        """Hand crystals to the processes; the result waits for them."""
        usable = torch.ones(len(crystals), dtype=torch.bool) if is_usable is None else is_usable
        shown = crystals.select(usable.nonzero().flatten())
        arrays = shown.to_arrays()
        jobs = [(pool, self._submit(worker, arrays)) for worker, pool in enumerate(self._pools)]

        def finish() -> RewardTable:
            found: dict[str, Answer] = {}
            for worker, (pool, future) in enumerate(jobs):
                found |= self._answers(worker, pool, future, len(arrays))
            ordered = [found[component.name] for component in self._rewards.components]
            return self._rewards.combined(ordered, shown, usable)

        return finish

    def close(self) -> None:
        """End the processes; what they have not begun is left."""
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)
        self._pools = []

    def _submit(self, worker: int, arrays: Sequence[CrystalArrays]) -> Future[dict[str, Answer]]:
        try:
            return self._pools[worker].submit(_answer, self._shares[worker], arrays)
        except BrokenProcessPool as error:  # it died while nobody was waiting for it
            broken: Future[dict[str, Answer]] = Future()
            broken.set_exception(error)
            return broken

    def _answers(
        self, worker: int, pool: ProcessPoolExecutor, future: Future[dict[str, Answer]], count: int
    ) -> dict[str, Answer]:
        try:
            return future.result()
        except BrokenProcessPool:
            why = "its process died, usually for want of memory; it is started anew"
        if pool is self._pools[worker]:
            pool.shutdown(wait=False)
            self._pools[worker] = self._pool()
            self._prepare(worker)
        return {name: Answer.failed(count, why) for name in self._shares[worker]}

    def _pool(self) -> ProcessPoolExecutor:
        # Spawned: forking a process in which torch computes with threads can hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(os.getpid(),))

    def _prepare(self, worker: int) -> Future[None]:
        return self._pools[worker].submit(_prepare, self._plain, self._shares[worker], self._reference)


_here: dict[str, Any] = {}
"""Components of this process, by name."""


def _start(parent: int) -> None:
    start_worker(parent)
    torch.set_num_threads(1)


def _prepare(plain: dict[str, Any], names: Sequence[str], reference: Sequence[CrystalArrays]) -> None:
    config = from_plain(RewardConfig, plain)
    mine = {name: spec for name, spec in config.named().items() if name in names}
    rewards = Rewards.build(RewardConfig(components=mine))
    rewards.set_reference(CrystalBatch.from_arrays(reference))
    _here.update({component.name: component.reward for component in rewards.components})


def _answer(names: Sequence[str], arrays: Sequence[CrystalArrays]) -> dict[str, Answer]:
    batch = CrystalBatch.from_arrays(arrays)
    structures = batch.to_structures()
    # What was ready once may fail to be so in a process that is started anew: a file that has gone, no memory.
    failed = Answer.failed(len(arrays), "it could not be made ready in the process that was started anew")
    return {name: ask(_here[name], structures, batch) if name in _here else failed for name in names}
