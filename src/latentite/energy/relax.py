"""Relaxation of many crystals at once, each with its own end: settings, results, and how far a crystal was moved.

A crystal that has converged, or that has failed (exploded, stalled, over its budget of steps, refused by the
potential), leaves the batch with its reason, and the next one takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.energy.fire import FireState, fire_step
from latentite.energy.gate import gate
from latentite.energy.potential import EnergyForces, Potential, single_points
from latentite.energy.settings import RelaxCell, RelaxSettings
from latentite.lattice import wrapped_difference
from latentite.nn.segment import segment_max, segment_sum


class RelaxStatus(StrEnum):
    """The end of a relaxation."""

    CONVERGED = "converged"
    SINGLE_POINT = "single_point"
    """One evaluation, and no more was asked."""
    REFUSED = "refused"
    """The gate let it not even begin."""
    EXPLODED = "exploded"
    """On its way it became something that the gate refuses, or its volume left the bounds."""
    STALLED = "stalled"
    """No progress for `patience` steps."""
    STEP_LIMIT = "step_limit"
    """Not converged within `max_steps`."""
    POTENTIAL_FAILED = "potential_failed"
    """The potential gave no finite numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxed:
    """Crystals after relaxation, in the order in which they came.

    The numbers of a crystal that failed are those of the last geometry that the potential could judge; one that
    it could never judge stands as it came, with NaN.
    """

    crystals: CrystalBatch
    """float64."""
    start_energy: Float[Tensor, " crystal"]
    """eV per cell."""
    energy: Float[Tensor, " crystal"]
    """eV per cell."""
    forces: Float[Tensor, "atom 3"]
    """eV/Å; NaN where energies alone were asked for."""
    stress: Float[Tensor, "crystal 3 3"]
    """eV/Å^3; likewise."""
    steps: Int[Tensor, " crystal"]
    """Evaluations of the potential."""
    status: tuple[RelaxStatus, ...]
    reasons: tuple[str | None, ...]
    """A sentence for each that has neither converged nor was to be evaluated once only."""

    @property
    def is_judged(self) -> Bool[Tensor, " crystal"]:
        """True where the numbers of a crystal belong to its geometry (even where the relaxation failed)."""
        return self.energy.isfinite()

    @property
    def max_force(self) -> Float[Tensor, " crystal"]:
        """eV/Å; length of the longest force on an atom of each crystal, NaN where there is none."""
        lengths = self.forces.norm(dim=1)
        return segment_max(lengths, self.crystals.crystal_index, len(self.crystals))


def displacement_rmsd(before: CrystalBatch, after: CrystalBatch) -> Float[Tensor, " crystal"]:
    """Root mean square displacement of the atoms, Å, a common translation and a homogeneous strain taken out.

    sqrt(mean_i |u_i|^2), where u_i is the periodic difference of the fractional coordinates of atom i, less its
    mean over the atoms, in the mean of both cells. The atoms are followed one by one, so there is no matcher:
    `StructureMatcher.get_rms_dist`, which others report, may exchange atoms of one element, gives nothing where
    the structures no longer match, and divides by (volume per atom)^(1/3) unless told otherwise. This number is
    therefore never smaller than the matcher's in Å, and always there. Periodic differences are the shortest per
    axis, which in very skew cells need not be the shortest of all.

    Args:
        before: crystals in any cells.
        after: the same atoms in the same order.

    Returns:
        Å; NaN where coordinates or cells are not finite.
    """
    index, count = before.crystal_index, len(before)
    num_atoms = before.num_atoms.double()[:, None]
    moved = after.frac_coords.double() - before.frac_coords.double()
    # The mean on the torus first: atoms on both sides of half a cell would average to nowhere.
    angle = 2.0 * math.pi * moved
    common = torch.atan2(segment_sum(angle.sin(), index, count), segment_sum(angle.cos(), index, count))
    moved = wrapped_difference(moved, common[index] / (2.0 * math.pi))
    moved = moved - (segment_sum(moved, index, count) / num_atoms)[index]
    cell = 0.5 * (before.lattice.double() + after.lattice.double())
    squares = torch.einsum("ai,aij->aj", moved, cell[index]).square().sum(-1)
    return (segment_sum(squares, index, count) / num_atoms[:, 0]).sqrt()


def volume_change(before: CrystalBatch, after: CrystalBatch) -> Float[Tensor, " crystal"]:
    """Volume after over volume before, minus 1."""
    return after.volume.double() / before.volume.double() - 1.0


class _Results:
    """Everything known of every crystal of the input so far."""

    def __init__(self, crystals: CrystalBatch) -> None:
        count = len(crystals)
        self.crystals = crystals
        self.frac_coords = crystals.frac_coords.clone()
        self.lattice = crystals.lattice.clone()
        self.start_energy = torch.full((count,), torch.nan, dtype=torch.float64)
        self.energy = self.start_energy.clone()
        self.forces = torch.full_like(self.frac_coords, torch.nan)
        self.stress = torch.full_like(self.lattice, torch.nan)
        self.steps = torch.zeros(count, dtype=torch.long)
        self.status: list[RelaxStatus | None] = [None] * count
        self.reasons: list[str | None] = [None] * count

    def record(self, state: FireState, result: EnergyForces, known: Tensor) -> None:
        """The present geometry and numbers of the crystals in flight that the potential could judge."""
        where = state.position[known]
        atoms, own = self.crystals.atoms_of(where), state.crystals.atoms_of(known)
        self.frac_coords[atoms] = state.crystals.frac_coords[own]
        self.lattice[where] = state.crystals.lattice[known]
        self.energy[where] = result.energy[known]
        self.forces[atoms] = result.forces[own]
        self.stress[where] = result.stress[known]
        self.steps[where] = state.steps[known]
        first = where[state.steps[known] == 1]
        self.start_energy[first] = self.energy[first]

    def end(self, position: int, status: RelaxStatus, reason: str | None) -> None:
        """A crystal is done with, well or badly."""
        self.status[position], self.reasons[position] = status, reason

    def finished(self) -> Relaxed:
        """Everything, once each crystal has ended."""
        statuses = [status for status in self.status if status is not None]
        assert len(statuses) == len(self.crystals)
        return Relaxed(
            crystals=replace(self.crystals, frac_coords=self.frac_coords, lattice=self.lattice),
            start_energy=self.start_energy,
            energy=self.energy,
            forces=self.forces,
            stress=self.stress,
            steps=self.steps,
            status=tuple(statuses),
            reasons=tuple(self.reasons),
        )


def relax(
    potential: Potential,
    crystals: CrystalBatch,
    settings: RelaxSettings | None = None,
    *,
    advance: Callable[[int], None] = lambda position: None,
) -> Relaxed:
    """Relaxes each crystal to the nearest minimum of the potential.

    Args:
        potential: what is minimised.
        crystals: any numbers at all; computed in float64 on the CPU around the potential.
        settings: the defaults of `RelaxSettings` when None.
        advance: told the position of each crystal that has ended, in the order in which they end.

    Returns:
        One result per crystal, in the order of the input.
    """
    settings = settings or RelaxSettings()
    crystals = crystals.to("cpu")
    crystals = replace(crystals, frac_coords=crystals.frac_coords.double(), lattice=crystals.lattice.double())
    results = _Results(crystals)
    waiting: list[int] = []
    for position, reason in enumerate(gate(crystals, potential.card, settings.limits)):
        if reason is None:
            waiting.append(position)
        else:
            results.end(position, RelaxStatus.REFUSED, reason)
            advance(position)
    state = _refilled(None, crystals, waiting, settings.max_atoms)
    while state is not None:
        ended = _evaluate_and_move(potential, state, results, settings)
        for position in state.position[ended].tolist():
            advance(position)
        going = (~ended).nonzero().flatten()
        state = state.select(going) if len(going) else None
        state = _refilled(state, crystals, waiting, settings.max_atoms)
    return results.finished()


def _refilled(
    state: FireState | None, crystals: CrystalBatch, waiting: list[int], max_atoms: int
) -> FireState | None:
    """The crystals in flight with as many of those waiting (taken from the list) as there is room for."""
    size = 0 if state is None else state.crystals.total_atoms
    taken: list[int] = []
    while waiting and (size == 0 or size + int(crystals.num_atoms[waiting[0]]) <= max_atoms):
        size += int(crystals.num_atoms[waiting[0]])
        taken.append(waiting.pop(0))
    if not taken:
        return state
    new = torch.tensor(taken)
    started = FireState.start(crystals.select(new), new)
    return started if state is None else state.joined(started)


def _evaluate_and_move(
    potential: Potential, state: FireState, results: _Results, settings: RelaxSettings
) -> Tensor:
    """One evaluation and one step of all crystals in flight (in place); which of them have ended."""
    is_judged = _still_crystals(potential, state, results, settings)
    ended = ~is_judged
    chosen = is_judged.nonzero().flatten()
    if len(chosen) == 0:
        return ended
    state.steps[chosen] += 1
    compute = partial(single_points, potential) if settings.energy_only else potential.compute
    result = _full(compute(state.crystals.select(chosen)), state.crystals, chosen)
    index, count = state.crystals.crystal_index, len(state.crystals)
    is_finite = result.energy.isfinite()
    if not settings.energy_only:
        # An atom without a finite force makes its crystal fail.
        num_broken = segment_sum((~result.forces.isfinite()).any(-1).double(), index, count)
        is_finite &= (num_broken == 0) & result.stress.isfinite().all(-1).all(-1)
    for k in (is_judged & ~is_finite).nonzero().flatten().tolist():
        reason = result.failures.get(k, "the potential gave energies, forces or stresses that are not finite")
        results.end(int(state.position[k]), RelaxStatus.POTENTIAL_FAILED, reason)
    ended |= ~is_finite
    results.record(state, result, (~ended).nonzero().flatten())

    largest_force = segment_max(result.forces.norm(dim=1), index, count)
    largest_stress = result.stress.abs().flatten(1).amax(1)
    if settings.cell != RelaxCell.FULL:
        largest_stress = torch.zeros_like(largest_stress)
    ended |= _judge(state, result.energy, largest_force, largest_stress, ended, results, settings)
    if settings.cell == RelaxCell.NONE:
        return ended  # every one of them
    result = replace(
        result, forces=result.forces.nan_to_num(0.0, 0.0, 0.0), stress=result.stress.nan_to_num(0.0, 0.0, 0.0)
    )
    fire_step(state, result, max_move=settings.max_move, moves_cell=settings.cell == RelaxCell.FULL)
    return ended


def _full(result: EnergyForces, crystals: CrystalBatch, chosen: Tensor) -> EnergyForces:
    """The result for some of the crystals as one for all, NaN for the others."""
    if len(chosen) == len(crystals):
        return result
    energy = torch.full((len(crystals),), torch.nan, dtype=result.energy.dtype)
    forces = torch.full((crystals.total_atoms, 3), torch.nan, dtype=result.forces.dtype)
    stress = torch.full((len(crystals), 3, 3), torch.nan, dtype=result.stress.dtype)
    energy[chosen], stress[chosen] = result.energy, result.stress
    forces[crystals.atoms_of(chosen)] = result.forces
    failures = {int(chosen[position]): reason for position, reason in result.failures.items()}
    return EnergyForces(energy=energy, forces=forces, stress=stress, failures=failures)


def _still_crystals(
    potential: Potential, state: FireState, results: _Results, settings: RelaxSettings
) -> Tensor:
    """True for crystals in flight that may be given to the potential; the others end here."""
    reasons = gate(state.crystals, potential.card, settings.limits)
    ratio = state.crystals.volume / state.start_volume
    bound = settings.max_volume_ratio
    for k in ((ratio > bound) | (ratio < 1 / bound)).nonzero().flatten().tolist():
        reasons[k] = reasons[k] or (
            f"its volume became {float(ratio[k]):.3g} times that at the start, beyond a factor of {bound:g}"
        )
    for k, reason in enumerate(reasons):
        if reason is not None:
            sentence = f"after {int(state.steps[k])} steps: {reason}"
            results.end(int(state.position[k]), RelaxStatus.EXPLODED, sentence)
    return torch.tensor([reason is None for reason in reasons])


def _judge(
    state: FireState,
    energy: Tensor,
    largest_force: Tensor,
    largest_stress: Tensor,
    ended: Tensor,
    results: _Results,
    settings: RelaxSettings,
) -> Tensor:
    """True for crystals that have converged, stalled or used up their steps."""
    # Forces (eV/Å) and stress (eV/Å^3) as multiples of what convergence asks for.
    excess = torch.maximum(largest_force / settings.fmax, largest_stress / settings.smax)
    is_better = (energy < state.best_energy - 1e-5 * state.crystals.num_atoms) | (
        excess < 0.99 * state.best_excess
    )
    state.best_energy = torch.minimum(state.best_energy, energy.nan_to_num(torch.inf))
    state.best_excess = torch.minimum(state.best_excess, excess.nan_to_num(torch.inf))
    state.progress = torch.where(is_better, state.steps, state.progress)
    left = f"{settings.fmax:g} eV/Å and {settings.smax:g} eV/Å^3"
    verdicts = torch.zeros_like(ended)
    converged = excess <= 1.0
    stalled = state.steps - state.progress >= settings.patience
    over = state.steps >= settings.max_steps
    if settings.cell == RelaxCell.NONE:
        for k in (~ended).nonzero().flatten().tolist():
            results.end(int(state.position[k]), RelaxStatus.SINGLE_POINT, None)
        return ~ended
    for k in ((converged | stalled | over) & ~ended).nonzero().flatten().tolist():
        verdicts[k] = True
        position = int(state.position[k])
        now = f"{float(largest_force[k]):.3g} eV/Å and {float(largest_stress[k]):.3g} eV/Å^3 (asked: {left})"
        if converged[k]:
            results.end(position, RelaxStatus.CONVERGED, None)
        elif stalled[k]:
            sentence = f"no progress in the last {settings.patience} of {int(state.steps[k])} steps, at {now}"
            results.end(position, RelaxStatus.STALLED, sentence)
        else:
            sentence = f"not converged after {int(state.steps[k])} steps, at {now}"
            results.end(position, RelaxStatus.STEP_LIMIT, sentence)
    return verdicts
