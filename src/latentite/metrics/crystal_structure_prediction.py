"""Crystal structure prediction: given what a crystal is made of, is the generated structure the right one?

`sample_distances` compares each target with its own k samples: normalised RMS distances, which `match_rate` turns into

- match rate and RMSE at k = 1 and best of k (CDVAE, Xie et al. 2022; DiffCSP, Jiao et al. 2023, whose tables hold
  0.3/0.5/10), over all pairs or over those in which both sides are valid;
- METRe, "match everyone to reference" (Martirossyan et al. 2025, arXiv 2509.12178): a reference structure
  counts as matched when any generated structure matches it, so that polymorphs are not held against a model;
- cRMSE of the same paper: the mean over all structures, an unmatched one counting as `stol`, the largest distance
  that a match can have; so that a model cannot gain by matching little but well.

The verdict is that of `StructureMatcher.get_rms_dist(generated, target)`, as in the code of the CDVAE family. It is
more generous than `fit`, on which uniqueness and novelty rest: it asks for a mean square displacement below `stol`,
`fit` for every displacement below it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.formulas import reduced_composition
from latentite.match.reduced import LOOSE, MatcherSettings, is_comparable, structure_of
from latentite.metrics.rates import Rate

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pymatgen.core.structure_matcher import StructureMatcher

_CHUNK = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchRate:
    """Share of the targets that are matched, and the distances of the matches."""

    rate: Rate
    rmse: float
    """Mean normalised RMS distance of the matched ones, in (volume / atoms)^(1/3); NaN of none."""
    corrected_rmse: float
    """Mean over all, with `stol` for an unmatched one (cRMSE); NaN of none."""


def match_rate(
    distances: Float[np.ndarray, "target sample"],
    *,
    k: int | None = None,
    is_valid: Bool[np.ndarray, "target sample"] | None = None,
    stol: float = LOOSE.stol,
) -> MatchRate:
    """Match rate over all targets, of the best among the first k samples of each.

    Args:
        distances: of `sample_distances`; NaN = no match.
        k: samples of each target that are looked at; None for all.
        is_valid: target and sample are both valid (CDVAE: SMACT with the old list, no atoms below 0.5 Å, at
            least 0.1 Å^3). Another pair is no match, yet its target stays in the denominator, as in the tables of
            the CDVAE family (DiffCSP on MP-20: 57.8 % of all pairs match, 52.5 % are also valid). For k > 1
            DiffCSP's own code asks this of the sample only.
        stol: of the matcher, for the corrected RMSE.

    Raises:
        ValueError: when k is not between 1 and the number of samples, or the shapes differ.
    """
    k = distances.shape[1] if k is None else k
    if not 1 <= k <= distances.shape[1]:
        raise ValueError(f"k must be 1 to {distances.shape[1]}, the samples of each target, got {k}")
    if is_valid is not None:
        if is_valid.shape != distances.shape:
            raise ValueError(
                f"is_valid must say it for each target and sample, got {is_valid.shape} for {distances.shape}"
            )
        distances = np.where(is_valid, distances, np.nan)
    return best_match_rate(_smallest(distances[:, :k]), stol=stol)


def best_match_rate(best: Float[np.ndarray, " target"], *, stol: float = LOOSE.stol) -> MatchRate:
    """Match rate of one distance per target (NaN = no match)."""
    matched = np.isfinite(best)
    return MatchRate(
        rate=Rate(numerator=int(matched.sum()), denominator=len(best)),
        rmse=float(best[matched].mean()) if matched.any() else math.nan,
        corrected_rmse=float(np.where(matched, best, stol).mean()) if len(best) else math.nan,
    )


def sample_distances(
    targets: Sequence[CrystalArrays],
    samples: Sequence[Sequence[CrystalArrays | None]],
    *,
    settings: MatcherSettings = LOOSE,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Float[np.ndarray, "target sample"]:
    """Normalised RMS distance of each target to each of its samples, NaN where they do not match.

    Args:
        targets: `(atomic_numbers, frac_coords, lattice)` each.
        samples: for each target equally many; None where none came out (no match).
        settings: tolerances of the matcher.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more targets are done.

    Raises:
        ValueError: when there are not equally many samples for each target.
    """
    if len(samples) != len(targets):
        raise ValueError(f"there must be samples for each target, got {len(samples)} for {len(targets)}")
    counts = {len(row) for row in samples}
    if len(counts) > 1:
        raise ValueError(
            f"every target must have equally many samples, got {min(counts)} to {max(counts)}; "
            "put None for those that are missing"
        )
    tasks = [_Task(target=target, generated=list(row)) for target, row in zip(targets, samples, strict=True)]
    rows = _run(tasks, settings, workers, advance)
    return np.stack(rows) if rows else np.zeros((0, 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    target: CrystalArrays
    generated: list[CrystalArrays | None]


def _run(
    tasks: list[_Task],
    settings: MatcherSettings,
    workers: int | None,
    advance: Callable[[int], None],
) -> list[np.ndarray]:
    """Distances `[generated]` of every task, in order."""
    chunks = [tasks[start : start + _CHUNK] for start in range(0, len(tasks), _CHUNK)]
    done = map_in_order(
        partial(_distances, settings=settings),
        chunks,
        workers=workers,
        advance=lambda chunk: advance(len(chunk)),
    )
    return [row for chunk in done for row in chunk]


def _distances(chunk: Sequence[_Task], *, settings: MatcherSettings) -> list[np.ndarray]:
    matcher = settings.build()
    rows = []
    for task in chunk:
        composition, target = (
            reduced_composition(task.target.atomic_numbers.tolist()),
            structure_of(task.target),
        )
        row = np.full(len(task.generated), np.nan)
        for position, crystal in enumerate(task.generated):
            # The matcher maps atoms one to one, so another composition never matches.
            if crystal is not None and reduced_composition(crystal.atomic_numbers.tolist()) == composition:
                row[position] = _distance(matcher, structure_of(crystal), target)
        rows.append(row)
    return rows


def _distance(matcher: StructureMatcher, generated: Structure, target: Structure) -> float:
    """NaN for no match, and for a cell that cannot be reduced."""
    if not (is_comparable(generated) and is_comparable(target)):
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = matcher.get_rms_dist(generated, target)
        except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError):
            return math.nan
    return math.nan if result is None else float(result[0])


def _smallest(distances: np.ndarray) -> np.ndarray:
    """Of each row, NaN where a row holds no number."""
    if distances.shape[1] == 0:
        return np.full(len(distances), np.nan)
    smallest = np.where(np.isnan(distances), np.inf, distances).min(axis=1)
    return np.where(np.isinf(smallest), np.nan, smallest)
