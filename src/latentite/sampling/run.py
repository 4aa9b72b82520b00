"""A sampling run: planned for a generator, then window after window, into a folder or into memory.

Everything that the generator cannot do is refused before the run. Into a folder, the memory that is used does not grow
with the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from latentite.base.files import sha256_file
from latentite.base.plain import names, numbers
from latentite.base.progress import ProgressBars
from latentite.crystal import CrystalBatch
from latentite.generators.asks import build_asks
from latentite.generators.jobs import Ask, Jobs
from latentite.generators.protocol import Advance, Askable, Drawn, Generator
from latentite.generators.sizes import NumAtoms, choose_num_atoms, plan_jobs
from latentite.sampling.folder import Counts, Format, RunFolder
from latentite.sampling.manifest import (
    Sessions,
    continued,
    finished_commits,
    new_manifest,
    read_manifest,
)
from latentite.sampling.options import GenerateConfig, parse_shard, read_formulas
from latentite.sampling.window import (
    BatchSize,
    Draw,
    GeometryLimits,
    Plan,
    Window,
    draw_window,
    shard_range,
    window_size,
    windows,
)
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
    """True if atoms are fixed, so that every sample has a deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Origin of a run, for its manifest."""

    settings: Mapping[str, Any]
    """Every option that the structures depend on, as plain values."""
    checkpoint: Mapping[str, Any]
    """File, sha256, weights."""
    command: Sequence[str]
    device: str


def plan_run(generator: Generator, config: GenerateConfig) -> tuple[Run, tuple[Ask, ...]]:
    """The run, or the shard of it, and what it asks.

    Raises:
        ValueError: for what the generator cannot do, and options that contradict each other.
    """
    if generator.card.has_trajectory and config.out is None:
        raise ValueError("out must be given together with trajectory, which is about its files")
    shard = parse_shard(config.shard)
    units = config.formula_units
    asks = build_asks(
        generator,
        conditions=config.conditions,
        formulas=read_formulas(config.formula),
        formula_units=None if units is None else numbers("formula_units", units),
        allowed=config.elements_allowed,
        required=config.elements_required,
        forbidden=config.elements_forbidden,
    )
    total = config.num_samples * (1 + asks[-1].request)
    size = window_size(config.batch_size)
    first, stop = shard_range(total, *shard, size)

    def draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        return generator.draw(jobs, seed=config.seed, batch_size=batch_size, advance=advance)

    run = Run(
        plan=partial(
            plan_jobs,
            seed=config.seed,
            sizes=_sizes(generator, config, asks),
            asks=asks,
            num_samples=config.num_samples,
        ),
        draw=draw,
        seed=config.seed,
        total=total,
        first=first,
        stop=stop,
        window_size=size,
        batch_size=config.batch_size,
        max_attempts=1 if config.no_replace else config.max_attempts,
        limits=GeometryLimits(min_distance_scaled=config.min_distance_scaled),
        conditions=generator.card.told,
        has_deviation=generator.card.has_deviation,
    )
    return run, asks


def _sizes(generator: Generator, config: GenerateConfig, asks: Sequence[Ask]) -> NumAtoms | None:
    """From what numbers of atoms are drawn; None where the requests say them, or the generator chooses."""
    card, option = generator.card, config.size_option
    if all(ask.num_atoms is not None for ask in asks):
        if option is not None:
            raise ValueError(
                f"{option} must not be given with a condition or structures that say how many atoms there are; "
                "leave one out"
            )
        return None
    if option is not None and Askable.NUM_ATOMS not in card.asks:
        raise ValueError(
            f"{option} must not be given: the generator {card.kind} cannot be asked for a number of atoms"
        )
    if option is None and not card.needs_num_atoms:
        return None
    return choose_num_atoms(config.num_atoms, config.num_atoms_distribution, train=card.sizes)


def plain_settings(generator: Generator, config: GenerateConfig) -> dict[str, Any]:
    """Every option that the files depend on, as plain values; contents of files by their hash."""
    left_out = ("ckpt", "out", "device", "resume")
    settings = {item.name: getattr(config, item.name) for item in fields(config) if item.name not in left_out}
    units, weights = config.formula_units, generator.card.weights
    settings |= {
        "weights": None if weights is None else weights.value,
        "conditions": _conditions_text(config.conditions),
        "num_atoms": None if config.num_atoms is None else str(config.num_atoms),
        "num_atoms_distribution": str(config.num_atoms_distribution),
        "formula": read_formulas(config.formula),
        "formula_units": None if units is None else numbers("formula_units", units),
        "format": [name.value for name in config.formats()],
    }
    for name in ("elements_allowed", "elements_required", "elements_forbidden"):
        value = settings[name]
        settings[name] = None if value is None else names(value)
    if config.num_atoms_distribution != "train" and config.num_atoms is None:
        settings["num_atoms_distribution_sha256"] = sha256_file(config.num_atoms_distribution)
    return settings | dict(generator.settings)


def _conditions_text(conditions: str | Mapping[str, object] | None) -> str | None:
    if isinstance(conditions, Mapping):
        return ",".join(f"{name}={value}" for name, value in conditions.items())
    return conditions


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


class RunProgress:
    """A context manager that is told of every batch and of every finished window.

    Args:
        total: crystals to sample.
        done: of them before this session.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._begun_at, self._shown = total, done, done
        self._start = time.perf_counter()
        self._bars = ProgressBars()
        self._bar = self._bars.add("sample", total, done=done)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def batch(self, count: int) -> None:
        """So many more crystals of the current window left the chain."""
        self._show(min(self._shown + count, self._total))

    def window(self, done: int) -> None:
        """So many crystals are written."""
        self._show(done)
        if not self._bars.is_shown:
            log.info("%d of %d crystals, %s", done, self._total, self._rate(done))

    def _show(self, done: int) -> None:
        self._shown = done
        self._bar.set(done, note=self._rate(done))

    def _rate(self, done: float) -> str:
        seconds = time.perf_counter() - self._start
        return f"{(done - self._begun_at) / max(seconds, 1e-9):.3g} structures/s"
