"""A sampling run: window after window, into a folder or into memory.

Into a folder, the memory that is used does not grow with the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentite.crystal import CrystalBatch
from latentite.generators.jobs import Ask, Jobs
from latentite.sampling.checks import GeometryLimits
from latentite.sampling.folder import Counts, Format, RunFolder
from latentite.sampling.manifest import (
    Sessions,
    continued,
    finished_commits,
    new_manifest,
    read_manifest,
)
from latentite.sampling.progress import RunProgress
from latentite.sampling.window import BatchSize, Draw, Plan, Window, draw_window, windows
from latentite.sampling.writers import Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run, or the part of it that is sampled here."""

    plan: Plan
    draw: Draw
    seed: int
    total: int
    """Crystals of the whole run, over all shards."""
    first: int
    """Index of the first crystal here."""
    stop: int
    """Index after the last crystal here."""
    window_size: int
    batch_size: int
    max_attempts: int
    """At each crystal; 1 replaces none."""
    limits: GeometryLimits = field(default_factory=GeometryLimits)
    """Bounds outside of which a crystal is refused."""
    conditions: Callable[[Ask], str] = lambda ask: ""
    """The conditions of an ask, as a user would type them."""
    has_deviation: bool = False
    """Whether atoms are fixed, so that every sample has a deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a run comes from, for its manifest."""

    settings: Mapping[str, Any]
    """Every option that the structures depend on, as plain values."""
    checkpoint: Mapping[str, Any]
    """File, sha256, weights."""
    command: Sequence[str]
    device: str


def run_to_folder(
    run: Run, folder: Path, *, origin: Origin, formats: Sequence[Format], resume: bool = False
) -> Counts:
    """Sample into a folder, or go on where an earlier session ended, also when more crystals are asked for now.

    Raises:
        ValueError: when the folder is not new and is not to be resumed, holds a run with other settings, or not what
            that run wrote.
        KeyboardInterrupt: passed on; the folder can be resumed.
    """
    fresh = new_manifest(origin.settings, origin.checkpoint, first=run.first, stop=run.stop, total=run.total)
    old = refuse_folder(folder, resume=resume)
    manifest = fresh if old is None else continued(folder, old, fresh)
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder, formats, total=run.total, has_deviation=run.has_deviation) as files:
        if old is not None and old["status"] == "finished":
            finished_commits(folder, old)
        commit = files.open(run.first)
        counts = Counts() if commit is None else Counts(**commit.counts)
        at = run.first if commit is None else commit.stop
        if at == run.stop and manifest["status"] == "finished":
            log.info("%s is finished already: nothing to do, its files are what was written", folder)
            return counts
        sessions = Sessions(folder, manifest, command=origin.command, device=origin.device, at=at)
        size = BatchSize(run.batch_size if commit is None else commit.batch_size)
        status = "failed"
        try:
            with RunProgress(run.stop - run.first, at - run.first) as progress:
                for window in _windows(run, at, size, progress):
                    counts.add(window)
                    files.write(window, samples_of(run, window))
                    files.commit(stop=window.stop, batch_size=size.value, counts=counts)
                    sessions.save("running", counts.to_plain())
                    progress.window(counts.done)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            log.info(
                "stopped after %d of %d crystals; the same command with --resume goes on from there",
                counts.done,
                run.stop - run.first,
            )
            raise
        finally:
            sessions.save(status, counts.to_plain())
    return counts


def run_in_memory(run: Run) -> tuple[CrystalBatch, Jobs, Counts]:
    """Sample and keep everything: the usable crystals in the order of the index, their jobs, and the counts."""
    counts = Counts()
    finished: list[Window] = []
    with RunProgress(run.stop - run.first) as progress:
        for window in _windows(run, run.first, BatchSize(run.batch_size), progress):
            counts.add(window)
            finished.append(window)
            progress.window(counts.done)
    if not finished:  # a shard of a run that has fewer windows than shards
        return CrystalBatch.from_arrays([]), run.plan([]), counts
    crystals = CrystalBatch.concatenate([window.crystals for window in finished])
    return crystals, Jobs.concatenate([window.jobs for window in finished]), counts


def refuse_folder(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """The manifest of a folder that is to be resumed; None when it is new.

    Raises:
        ValueError: when it holds something that must not be mixed with this run.
    """
    manifest = read_manifest(folder)
    if manifest is not None and not resume:
        raise ValueError(
            f"out must be a new or empty folder, got {folder}, which holds a run; add --resume to go on with it"
        )
    return manifest


def samples_of(run: Run, window: Window) -> list[Sample]:
    """A window's crystals with all that the files say of them."""
    jobs = window.jobs
    told = {ask: run.conditions(jobs.asked[ask]) for ask in jobs.asks.unique().tolist()}
    deviations: Sequence[float | None] = window.fixed_deviation or [None] * len(jobs)
    return [
        Sample(
            index=index,
            attempt=attempt,
            seed=seed,
            formula=formula,
            ask=jobs.asked[ask].label,
            conditions=told[ask],
            arrays=arrays,
            cif=cif,
            fixed_deviation=deviation,
        )
        for index, attempt, seed, formula, ask, arrays, cif, deviation in zip(
            jobs.indices.tolist(),
            jobs.attempts.tolist(),
            jobs.seeds(run.seed),
            window.formulas,
            jobs.asks.tolist(),
            window.crystals.to_arrays(),
            window.cifs,
            deviations,
            strict=True,
        )
    ]


def _windows(run: Run, at: int, size: BatchSize, progress: RunProgress) -> Iterator[Window]:
    for first, stop in windows(at, run.stop, run.window_size):
        yield draw_window(
            first,
            stop,
            plan=run.plan,
            draw=run.draw,
            batch_size=size,
            max_attempts=run.max_attempts,
            limits=run.limits,
            advance=progress.batch,
        )
