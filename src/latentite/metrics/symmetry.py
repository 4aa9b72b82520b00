"""Space groups at several tolerances and labels of symmetry, of many crystals, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import SYMPREC, space_group_number
from latentite.symmetry.labels import SymmetryLabel, symmetry_label

_CHUNK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Symmetry:
    """Of one crystal."""

    space_groups: tuple[int | None, ...]
    """At each tolerance that was asked for; None where the search fails."""
    label: SymmetryLabel | None
    """At `SYMPREC`; None where that tolerance is not among these, or there is a reason why not."""
    reason: str | None
    """Of a label that is missing."""


def symmetries(
    crystals: Sequence[CrystalArrays],
    *,
    symprecs: Sequence[float],
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    keep: Callable[[int, Sequence[Symmetry]], None] = lambda first, found: None,
) -> list[Symmetry]:
    """The symmetry of each crystal.

    Args:
        crystals: of any origin.
        symprecs: tolerances, Å; labels are made at `SYMPREC`, where it is among them.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
        keep: given the position of a first crystal and what is known from there on, as soon as it is.
    """
    chunks = [(start, crystals[start : start + _CHUNK]) for start in range(0, len(crystals), _CHUNK)]
    done = map_in_order(
        partial(_symmetries, symprecs=tuple(symprecs)),
        chunks,
        workers=workers,
        advance=lambda chunk: advance(len(chunk[1])),
        keep=lambda chunk, found: keep(chunk[0], found),
    )
    return [one for found in done for one in found]


def _symmetries(chunk: tuple[int, Sequence[CrystalArrays]], *, symprecs: tuple[float, ...]) -> list[Symmetry]:
    return [_symmetry(crystal, symprecs) for crystal in chunk[1]]


def _symmetry(crystal: CrystalArrays, symprecs: tuple[float, ...]) -> Symmetry:
    groups: list[int | None] = []
    label: SymmetryLabel | None = None
    reason: str | None = None
    for symprec in symprecs:
        if symprec == SYMPREC:
            number, found = symmetry_label(crystal, symprec=symprec)
            label, reason = (None, found) if isinstance(found, str) else (found, None)
            groups.append(number)
        else:
            groups.append(
                space_group_number(
                    crystal.atomic_numbers, crystal.frac_coords, crystal.lattice, symprec=symprec
                )
            )
    return Symmetry(space_groups=tuple(groups), label=label, reason=reason)
