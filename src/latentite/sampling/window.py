"""One window of a run: consecutive crystals, each sampled again until it is usable; and what makes a crystal unusable.

A run is cut into windows at fixed multiples, so that a shard and a resumed run sample the same batches as a run that
was never cut. Crystal i is the first usable attempt of (seed, i, 0), (seed, i, 1), ...; nothing else decides.

Refused are crystals that cannot be: collapsed cells, atoms on top of each other, numbers that are none. The limits are
those of `data/readers/checks.py`, which decides what may enter a data set; here every refusal also has a kind, so that
a run can count them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.readers.checks import Limits, refusals
from latentite.data.readers.cif import parse_p1
from latentite.formulas import reduced_formulas
from latentite.generators.elements import fulfilled
from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Advance, Drawn
from latentite.metrics.close_pairs import closest_scaled
from latentite.sampling.writers import cif_text, reads_back


class RefusalKind(StrEnum):
    """Reasons for which a crystal cannot be used."""

    NOT_DRAWN = "not_drawn"
    """The generator gave none, and said why."""
    NOT_FINITE = "not_finite"
    """Coordinates or cell are NaN or infinite."""
    COLLAPSED_CELL = "collapsed_cell"
    """Too little volume per atom, or lattice planes on top of each other."""
    LEFT_HANDED_CELL = "left_handed_cell"
    """A length below zero, or an angle that no cell has: a file of lengths and angles would hold the mirror image."""
    EXPLODED_CELL = "exploded_cell"
    """Too much volume per atom."""
    OVERLAPPING_ATOMS = "overlapping_atoms"
    """Two atoms, periodic images included, closer than the limit."""
    TOO_CLOSE = "too_close"
    """Two atoms closer than asked, in units of the sum of their covalent radii."""
    UNREADABLE = "unreadable_cif"
    """Its CIF would not come back as the same crystal (`writers.reads_back`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A kind, and a sentence with the numbers."""

    kind: RefusalKind
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GeometryLimits:
    """Bounds outside of which a sampled crystal is refused."""

    limits: Limits = field(default_factory=lambda: Limits(max_atoms=None))
    """Distances (0.5 Å) and volumes per atom (1 to 1000 Å^3)."""
    min_plane_spacing: float = 0.1
    """Å; a cell whose lattice planes are closer is flat, whatever its volume."""
    min_distance_scaled: float = 0.0
    """Of any two atoms, periodic images included, over the sum of their covalent radii; 0 for no bound."""


def geometry_refusals(crystals: CrystalBatch, limits: GeometryLimits | None = None) -> list[Refusal | None]:
    """For each crystal why it cannot be, or None.

    Args:
        crystals: as sampled, on any device.
        limits: bounds; the defaults of `GeometryLimits` when None.
    """
    limits = limits or GeometryLimits()
    arrays = crystals.to_arrays()
    if not arrays:
        return []
    lattices = np.stack([crystal.lattice for crystal in arrays])
    counts = np.array([crystal.num_atoms for crystal in arrays])
    firsts = np.cumsum(counts) - counts
    is_finite = np.isfinite(lattices).all(axis=(1, 2)) & np.logical_and.reduceat(
        np.isfinite(np.concatenate([crystal.frac_coords for crystal in arrays])).all(axis=1), firsts
    )
    safe = np.where(is_finite[:, None, None], lattices, np.eye(3))
    determinants = np.linalg.det(safe)
    volumes = np.abs(determinants)
    crosses = np.linalg.norm(np.cross(safe[:, [1, 2, 0]], safe[:, [2, 0, 1]]), axis=-1)
    spacing = volumes / np.maximum(crosses.max(axis=1), np.finfo(float).tiny)
    is_flat = is_finite & (spacing < limits.min_plane_spacing)
    is_left_handed = is_finite & ~is_flat & (determinants < 0.0)
    results: list[Refusal | None] = [None] * len(arrays)
    # Flat cells are told apart first: the exact distance check would search very many images of them.
    for position in np.flatnonzero(is_flat):
        sentence = (
            f"lattice planes {spacing[position]:.3g} Å apart, closer than {limits.min_plane_spacing:g} Å"
        )
        results[position] = Refusal(kind=RefusalKind.COLLAPSED_CELL, reason=sentence)
    for position in np.flatnonzero(is_left_handed):
        sentence = "the cell is left-handed: a length is below zero, or an angle outside of 0 to 180 degrees"
        results[position] = Refusal(kind=RefusalKind.LEFT_HANDED_CELL, reason=sentence)
    rest = np.flatnonzero(~(is_flat | is_left_handed))
    for position, reason in zip(rest, refusals([arrays[p] for p in rest], limits.limits), strict=True):
        if reason is None:
            continue
        if not is_finite[position]:
            kind = RefusalKind.NOT_FINITE
        elif volumes[position] / counts[position] < limits.limits.min_volume_per_atom:
            kind = RefusalKind.COLLAPSED_CELL
        elif volumes[position] / counts[position] > limits.limits.max_volume_per_atom:
            kind = RefusalKind.EXPLODED_CELL
        else:
            kind = RefusalKind.OVERLAPPING_ATOMS
        results[position] = Refusal(kind=kind, reason=reason)
    if limits.min_distance_scaled > 0:
        left = [number for number in rest.tolist() if results[number] is None]
        for number, pair in zip(left, closest_scaled([arrays[p] for p in left]), strict=True):
            if pair.scaled < limits.min_distance_scaled:
                results[number] = Refusal(
                    kind=RefusalKind.TOO_CLOSE,
                    reason=pair.sentence(arrays[number], limits.min_distance_scaled),
                )
    return results


log = logging.getLogger(__name__)

Draw = Callable[[Jobs, int, Advance], Drawn]
"""(jobs, batch size, told of each batch) -> their crystals; a generator's `draw`."""
Plan = Callable[[Sequence[int]], Jobs]
"""Indices -> first attempts at them; `sizes.plan_jobs`."""

_BATCHES, _LEAST = 4, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedAttempt:
    """A crystal that could not be used."""

    index: int
    attempt: int
    refusal: Refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """The outcome of the crystals from `first` to before `stop`, in the order of the index."""

    first: int
    stop: int
    jobs: Jobs
    """Of the crystals that are usable, with the attempt that was."""
    crystals: CrystalBatch
    cifs: tuple[str, ...]
    formulas: tuple[str, ...]
    is_verified: Bool[Tensor, " crystal"]
    """True if the crystal has what its job asks for, counted from its CIF."""
    rejected: tuple[RejectedAttempt, ...]
    trajectory: tuple[CrystalBatch, ...] = ()
    """Every state on the way to `crystals`; empty when not asked for."""
    fixed_deviation: tuple[float, ...] = ()

    @property
    def num_failed(self) -> int:
        """Crystals of which no attempt was usable."""
        return self.stop - self.first - len(self.jobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Usable:
    """The usable crystals of one attempt."""

    jobs: Jobs
    crystals: CrystalBatch
    cifs: list[str]
    formulas: list[str]
    trajectory: list[CrystalBatch]
    fixed_deviation: list[float]


class BatchSize:
    """The number of crystals that fit into memory at once: halved whenever they did not."""

    def __init__(self, value: int) -> None:
        self.value = value

    def draw(self, draw: Draw, jobs: Jobs, advance: Advance) -> Drawn:
        """Draw these jobs, in smaller batches when memory runs out.

        Raises:
            ValueError: when there is not enough memory for one crystal.
        """
        while True:
            try:
                return draw(jobs, self.value, advance)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                largest = min(self.value, len(jobs))
                if largest == 1:
                    most = int(jobs.num_atoms.max())
                    raise ValueError(
                        f"memory must hold one crystal{f' of {most} atoms' if most else ''} at a time, but it ran out "
                        "at batch size 1; use another device, a smaller model or, where it has one, a lower --precision"
                    ) from error
            # Here, and not above: the exception keeps the tensors of the failed batch alive.
            self.value = max(1, largest // 2)
            log.warning("out of memory: going on with a batch size of %d", self.value)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error that says that memory ran out: CUDA's, MPS's, the CPU allocator's or Python's own."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in text for words in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )


def window_size(batch_size: int) -> int:
    """Crystals per window: a few batches, so that sizes can be sorted into full ones."""
    return max(_LEAST, _BATCHES * batch_size)


def windows(first: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of [first, stop) between the multiples of `size`."""
    while first < stop:
        end = min(stop, (first // size + 1) * size)
        yield first, end
        first = end


def shard_range(total: int, number: int, count: int, size: int) -> tuple[int, int]:
    """The part of a run that shard `number` of `count` samples, `number` from 1.

    Shards are whole windows where there are enough of them, so that their batches are those of the whole run.
    """
    num_windows = -(-total // size)
    unit, units = (size, num_windows) if num_windows >= count else (1, total)
    first, stop = (units * part // count * unit for part in (number - 1, number))
    return min(first, total), min(stop, total)


def draw_window(
    first: int,
    stop: int,
    *,
    plan: Plan,
    draw: Draw,
    batch_size: BatchSize,
    max_attempts: int,
    limits: GeometryLimits | None = None,
    advance: Advance = lambda count: None,
) -> Window:
    """Sample the crystals from `first` to before `stop`.

    Args:
        first: index of the first.
        stop: index after the last.
        plan: see `Plan`.
        draw: see `Draw`.
        batch_size: is made smaller when memory runs out.
        max_attempts: at each crystal; 1 never replaces any.
        limits: bounds outside of which a crystal is refused; None for the defaults.
        advance: told of each batch of first attempts.

    Raises:
        ValueError: when not even one crystal fits into memory.
    """
    jobs = plan(range(first, stop))
    usable: list[_Usable] = []
    rejected: list[RejectedAttempt] = []
    for attempt in range(max_attempts):
        tell = advance if attempt == 0 else _silent
        good, refusals = _judged(jobs, batch_size.draw(draw, jobs, tell), limits)
        usable.append(good)
        bad = [place for place, refusal in enumerate(refusals) if refusal is not None]
        rejected += [
            RejectedAttempt(index=int(jobs.indices[p]), attempt=int(jobs.attempts[p]), refusal=refusal)
            for p in bad
            if (refusal := refusals[p]) is not None
        ]
        jobs = jobs.select(torch.tensor(bad, dtype=torch.long))
        jobs = replace(jobs, attempts=jobs.attempts + 1)
        if not bad:
            break
    return _in_order(first, stop, usable, rejected)


def _silent(count: int) -> None:
    pass


def _judged(jobs: Jobs, drawn: Drawn, limits: GeometryLimits | None) -> tuple[_Usable, list[Refusal | None]]:
    """The usable ones of what was drawn, and for every job why there is none."""
    refusals: list[Refusal | None] = [None] * len(jobs)
    for place, reason in drawn.failures.items():
        refusals[place] = Refusal(kind=RefusalKind.NOT_DRAWN, reason=reason)
    places = [place for place, refusal in enumerate(refusals) if refusal is None]
    for place, refusal in zip(places, geometry_refusals(drawn.crystals, limits), strict=True):
        refusals[place] = refusal
    sound = [row for row, place in enumerate(places) if refusals[place] is None]
    crystals = drawn.crystals.select(torch.tensor(sound, dtype=torch.long))
    formulas = reduced_formulas(crystals)
    cifs = []
    for row, arrays, formula in zip(sound, crystals.to_arrays(), formulas, strict=True):
        text = cif_text(arrays, formula)
        if (unreadable := reads_back(text, arrays)) is not None:
            refusals[places[row]] = Refusal(kind=RefusalKind.UNREADABLE, reason=unreadable)
        cifs.append(text)
    kept = [number for number, row in enumerate(sound) if refusals[places[row]] is None]
    rows = torch.tensor([sound[number] for number in kept], dtype=torch.long)
    usable = _Usable(
        jobs=jobs.select(torch.tensor([places[sound[number]] for number in kept], dtype=torch.long)),
        crystals=drawn.crystals.select(rows),
        cifs=[cifs[number] for number in kept],
        formulas=[formulas[number] for number in kept],
        trajectory=[state.select(rows) for state in drawn.trajectory or []],
        fixed_deviation=[] if drawn.fixed_deviation is None else drawn.fixed_deviation[rows].tolist(),
    )
    return usable, refusals


def _in_order(first: int, stop: int, parts: Sequence[_Usable], rejected: list[RejectedAttempt]) -> Window:
    """One window of the attempts, by index."""
    jobs = Jobs.concatenate([part.jobs for part in parts])
    order = jobs.indices.argsort()
    jobs = jobs.select(order)
    cifs = [text for part in parts for text in part.cifs]
    formulas = [text for part in parts for text in part.formulas]
    deviations = [value for part in parts for value in part.fixed_deviation]
    states = zip(*(part.trajectory for part in parts), strict=True)
    cifs = [cifs[place] for place in order.tolist()]
    return Window(
        first=first,
        stop=stop,
        jobs=jobs,
        crystals=CrystalBatch.concatenate([part.crystals for part in parts]).select(order),
        cifs=tuple(cifs),
        formulas=tuple(formulas[place] for place in order.tolist()),
        is_verified=fulfilled(_as_written(cifs), jobs),
        rejected=tuple(sorted(rejected, key=lambda item: (item.index, item.attempt))),
        trajectory=tuple(CrystalBatch.concatenate(list(same)).select(order) for same in states),
        fixed_deviation=tuple(deviations[place] for place in order.tolist()) if deviations else (),
    )


def _as_written(cifs: Sequence[str]) -> CrystalBatch:
    """The crystals as the CIFs have them."""
    return CrystalBatch.from_arrays([arrays for text in cifs if (arrays := parse_p1(text)) is not None])
