"""Refusals before every computation: crystals that no potential is asked, each with a reason.

A learned potential answers for anything, and what it says of a structure far from its training means nothing: two
atoms on one site score nearly as well as the real crystal, and one collapsed cell can cost half a minute and 15 GB of
neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from latentite import lattice as lat
from latentite.crystal import CrystalBatch
from latentite.data.readers.checks import refusals
from latentite.elements import symbol_of
from latentite.energy.neighbours import neighbour_list
from latentite.energy.potential import PotentialCard
from latentite.energy.settings import GateLimits


def gate(crystals: CrystalBatch, card: PotentialCard, limits: GateLimits | None = None) -> list[str | None]:
    """For each crystal why the potential is not asked, or None where it is.

    Args:
        crystals: any numbers at all, NaN included.
        card: of the potential that would be asked (elements and cut-off).
        limits: bounds; the defaults of `GateLimits` when None.
    """
    limits = limits or GateLimits()
    reasons = _element_refusals(crystals, card)
    _fill(reasons, range(len(crystals)), _cell_refusals(crystals, limits))
    rest = _open(reasons)
    arrays = crystals.to_arrays()
    # The cells that are left are neither flat nor skew, so the search for close pairs stays short.
    _fill(reasons, rest, refusals([arrays[position] for position in rest], limits.geometry))
    rest = _open(reasons)
    _fill(
        reasons, rest, _density_refusals(crystals.select(torch.tensor(rest, dtype=torch.long)), card, limits)
    )
    rest = _open(reasons)
    _fill(
        reasons,
        rest,
        _neighbour_refusals(crystals.select(torch.tensor(rest, dtype=torch.long)), card, limits),
    )
    return reasons


def _open(reasons: Sequence[str | None]) -> list[int]:
    return [position for position, reason in enumerate(reasons) if reason is None]


def _fill(reasons: list[str | None], positions: Sequence[int], new: Sequence[str | None]) -> None:
    """Writes new reasons where there is none yet."""
    for position, reason in zip(positions, new, strict=True):
        reasons[position] = reasons[position] or reason


def _element_refusals(crystals: CrystalBatch, card: PotentialCard) -> list[str | None]:
    known = torch.tensor(sorted(card.elements), device=crystals.device)
    reasons: list[str | None] = [None] * len(crystals)
    foreign = torch.isin(crystals.atomic_numbers, known, invert=True).nonzero().flatten()
    owners = crystals.crystal_index[foreign].tolist()
    for owner, number in zip(owners, crystals.atomic_numbers[foreign].tolist(), strict=True):
        reasons[owner] = reasons[owner] or f"{card.name} does not know the element {symbol_of(number)}"
    for empty in (crystals.num_atoms == 0).nonzero().flatten().tolist():
        reasons[empty] = "no atoms"
    return reasons


def _cell_refusals(crystals: CrystalBatch, limits: GateLimits) -> list[str | None]:
    """Cells that are not finite, skew beyond the limit, or flat."""
    lattice = crystals.lattice.detach().double().cpu()
    is_finite = lattice.isfinite().all(-1).all(-1)
    safe = torch.where(is_finite[:, None, None], lattice, torch.eye(3, dtype=torch.float64))
    _, angles = lat.parameters_from_lattice(safe)
    normals = torch.linalg.cross(safe[:, [1, 2, 0]], safe[:, [2, 0, 1]], dim=-1).norm(dim=-1)
    spacing = lat.volume(safe) / normals.amax(-1).clamp(min=torch.finfo(torch.float64).tiny)
    coords_finite = torch.ones(len(crystals), dtype=torch.bool)
    coords_finite[crystals.crystal_index[~crystals.frac_coords.isfinite().all(-1)].cpu()] = False
    reasons: list[str | None] = []
    for position in range(len(crystals)):
        smallest, largest = float(angles[position].min()), float(angles[position].max())
        if not is_finite[position]:
            reasons.append("absurd cell: its vectors are not finite numbers")
        elif not coords_finite[position]:
            reasons.append("coordinates are not finite numbers")
        elif smallest < limits.min_angle or largest > 180.0 - limits.min_angle:
            angle = smallest if smallest < limits.min_angle else largest
            reasons.append(
                f"absurd cell: an angle of {angle:.1f} degrees, outside {limits.min_angle:g} "
                f"to {180.0 - limits.min_angle:g}"
            )
        elif spacing[position] < limits.min_plane_spacing:
            reasons.append(
                f"absurd cell: lattice planes {float(spacing[position]):.3g} Å apart, closer than "
                f"{limits.min_plane_spacing:g} Å"
            )
        else:
            reasons.append(None)
    return reasons


def _density_refusals(crystals: CrystalBatch, card: PotentialCard, limits: GateLimits) -> list[str | None]:
    """Crystals whose neighbour list would be too long to be made, judged by their density."""
    sphere = 4.0 / 3.0 * math.pi * card.cutoff**3
    expected = (crystals.num_atoms.double() ** 2 * sphere / crystals.volume.double()).tolist()
    return [_too_many(count, card, limits) if count > limits.max_pairs else None for count in expected]


def _neighbour_refusals(crystals: CrystalBatch, card: PotentialCard, limits: GateLimits) -> list[str | None]:
    """Crystals with too many neighbours, or with an atom that has none."""
    pairs = neighbour_list(crystals, card.cutoff)
    is_isolated = np.bincount(pairs.first, minlength=crystals.total_atoms) == 0
    num_isolated = np.bincount(
        crystals.crystal_index.cpu().numpy(), weights=is_isolated, minlength=len(crystals)
    )
    reasons: list[str | None] = []
    for count, isolated in zip(pairs.num_pairs.tolist(), num_isolated.astype(int).tolist(), strict=True):
        if count > limits.max_pairs:
            reasons.append(_too_many(count, card, limits))
        elif isolated:
            reasons.append(f"{isolated} atom(s) without any neighbour within {card.cutoff:g} Å")
        else:
            reasons.append(None)
    return reasons


def _too_many(count: float, card: PotentialCard, limits: GateLimits) -> str:
    return (
        f"about {count:.3g} neighbour pairs within {card.cutoff:g} Å, more than the limit of "
        f"{limits.max_pairs:,} (max_pairs)"
    )
