"""One form per crystal: Niggli cell, standard orientation, deterministic origin and order of atoms.

The same crystal written in another cell (rotated, shifted, atoms permuted, basis changed by any integer
matrix of determinant +1 or -1) comes out as the same numbers. The difficulty is that a cell is rarely
unique: a cubic lattice has 24 equivalent right-handed Niggli bases, every atom of a species can be the
origin, and relaxed cells are nearly but not exactly symmetric (a and b differ by 1e-6 Å; an angle is
90.0001 degrees), so that a reducer's choice, or a comparison of rounded numbers, flips with noise.

The way out here: enumerate all bases that are reduced within a tolerance and all origins, give every pair one smooth
generic score, and keep the highest. Where the choice is close, either the two candidates are nearly the same crystal,
and it does not matter, or a generic function has two equal values by accident. Nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import (
    TOLERANCE,
    ReducedBases,
    cross,
    integer_inverse,
    multiply,
    niggli_transformations,
    reduced_bases,
)

CANONICAL_VERSION = 2
"""Raised whenever the canonical form of any crystal changes; caches made by another version are rebuilt."""

# Generic numbers of the score: no permutation, negation or shear of the axes leaves it unchanged.
_SHARPNESS = np.array([1.00, 1.37, 0.73])
_PHASES = np.array([0.61, 1.93, 4.07])
_METRIC_WEIGHTS = np.array([0.31, 0.73, -0.47, 0.59, 0.83])
_TIE = 1e-9  # scores closer than this are equal: the first candidate wins, whatever the last bits say

_SEAM = 0.0123  # fractional coordinates are sorted on the circle cut here, where no special position lies
_SAME_COORDINATE = 1e-3  # neighbouring coordinates closer than this are one plane of atoms when sorting
_SNAP = 1e-9  # a coordinate this close to 1 is written as 0

_CHUNK = 1024  # crystals worked on at once: enough to spread numpy's overhead, little enough memory


def canonicalize(crystal: CrystalArrays) -> CrystalArrays:
    """Canonical form of one crystal; `canonicalize_many` of a single one, so the two agree bit for bit.

    Args:
        crystal: its coordinates may be any real numbers (they are wrapped here), its cell in any orientation and
            of either handedness.

    Returns:
        Atoms sorted by atomic number, then by position; coordinates
        in [0, 1) with one atom of the rarest species (of the lightest such) at the origin; the cell
        right-handed, Niggli-reduced within `TOLERANCE`, oriented as `lattice.lattice_from_parameters` does.
        The number of atoms is kept (no reduction to a primitive cell), and mirror images stay apart.

    Raises:
        ValueError: for a crystal without atoms, with numbers that are not finite, or with a flat cell.
    """
    return canonicalize_many([crystal])[0]


def canonicalize_many(crystals: Sequence[CrystalArrays]) -> list[CrystalArrays]:
    """Canonical form of every crystal, in order. Several hundred at a time are much faster than one by one.

    Raises:
        ValueError: naming the position of a crystal that has none (see `canonicalize`).
    """
    return [arrays for arrays, _ in canonicalize_with_order(crystals)]


def canonicalize_with_order(
    crystals: Sequence[CrystalArrays],
) -> list[tuple[CrystalArrays, Int[np.ndarray, " atom"]]]:
    """As `canonicalize_many`, each with the place that every atom of the canonical form had in the input."""
    results: list[tuple[CrystalArrays, np.ndarray]] = []
    for start in range(0, len(crystals), _CHUNK):
        results += _canonicalize_chunk(crystals[start : start + _CHUNK], start)
    return results


def _canonicalize_chunk(
    crystals: Sequence[CrystalArrays], start: int
) -> list[tuple[CrystalArrays, np.ndarray]]:
    """The work of `canonicalize_many` on crystals whose arrays fit in memory; `start` counts those before."""
    num_atoms = np.array([crystal.num_atoms for crystal in crystals])
    if not num_atoms.all():
        raise ValueError(f"crystal {start + int(num_atoms.argmin())} must have at least one atom, got none")
    numbers = np.concatenate([crystal.atomic_numbers for crystal in crystals]).astype(np.int64)
    coords = np.concatenate([crystal.frac_coords for crystal in crystals]).astype(np.float64)
    lattices = np.stack([crystal.lattice for crystal in crystals]).astype(np.float64)
    crystal_index = np.repeat(np.arange(len(crystals)), num_atoms)
    is_finite = np.isfinite(coords).all(axis=1)
    if not is_finite.all():
        position = start + int(crystal_index[is_finite.argmin()])
        raise ValueError(f"the coordinates of crystal {position} must be finite numbers")

    changes = niggli_transformations(lattices, first_position=start)
    lattices = multiply(changes, lattices)
    coords = multiply(coords[:, None, :], integer_inverse(changes)[crystal_index])[:, 0]
    bases = reduced_bases(lattices)
    chosen, origins = _best_candidates(numbers, coords, num_atoms, bases)
    lattices = _standard_orientation(multiply(bases.matrices[chosen], lattices))
    inverse = integer_inverse(bases.matrices[chosen])[crystal_index]
    coords = _wrap(multiply((coords - coords[origins[crystal_index]])[:, None, :], inverse)[:, 0])
    order = _atom_order(numbers, coords, crystal_index)
    edges = np.cumsum(num_atoms)[:-1]
    canonical = map(CrystalArrays, np.split(numbers[order], edges), np.split(coords[order], edges), lattices)
    places = order - np.repeat(np.cumsum(num_atoms) - num_atoms, num_atoms)
    return list(zip(canonical, np.split(places, edges), strict=True))


def _standard_orientation(lattices: Float[np.ndarray, "crystal 3 3"]) -> Float[np.ndarray, "crystal 3 3"]:
    """Rotate right-handed cells so that c lies along z and a in the xz plane, exact zeros included."""
    a, b, c = lattices[:, 0], lattices[:, 1], lattices[:, 2]
    unit_z = c / np.sqrt((c * c).sum(axis=1, keepdims=True))
    normal = cross(c, a)
    unit_y = normal / np.sqrt((normal * normal).sum(axis=1, keepdims=True))
    unit_x = cross(unit_y, unit_z)
    standard = np.zeros_like(lattices)
    for row, vector in enumerate((a, b, c)):
        for column, axis in enumerate((unit_x, unit_y, unit_z)):
            standard[:, row, column] = (vector * axis).sum(axis=1)
    standard[:, 0, 1] = standard[:, 2, 0] = standard[:, 2, 1] = 0.0
    return standard


def _best_candidates(
    numbers: Int[np.ndarray, " atom"],
    coords: Float[np.ndarray, "atom 3"],
    num_atoms: Int[np.ndarray, " crystal"],
    bases: ReducedBases,
) -> tuple[Int[np.ndarray, " crystal"], Int[np.ndarray, " crystal"]]:
    """For each crystal the position of its best basis and of its origin atom.

    The score of a basis and an origin is the sum over atoms of
    `weight(Z) * exp(sum_k s_k cos(2 pi x_k - p_k))`, divided by its upper bound, minus the cost of the basis:
    smooth and periodic in the coordinates, and none of its Fourier coefficients is zero, so that it sees
    every difference between two arrangements. The cost is the violation of the Niggli conditions, so heavy
    that a basis at the edge of the tolerance never wins, plus a generic linear function of the metric, which
    tells nearly equal cells apart.
    """
    metric = np.concatenate([bases.lengths[:, :2] / bases.lengths[:, 2:], bases.cosines], axis=1)
    costs = bases.violation * (1.5 / TOLERANCE) + (metric * _METRIC_WEIGHTS).sum(axis=1)
    inverses = integer_inverse(bases.matrices)
    first_atom = np.cumsum(num_atoms) - num_atoms
    origins, origin_counts = _origins(numbers, num_atoms)
    first_origin = np.cumsum(origin_counts) - origin_counts
    first_basis = np.searchsorted(bases.owners, np.arange(len(num_atoms)))
    basis_counts = np.bincount(bases.owners, minlength=len(num_atoms))
    weights = 0.5 + np.modf(numbers * 0.6180339887498949)[0]
    weights = weights / np.repeat(np.add.reduceat(weights, first_atom), num_atoms)

    chosen, chosen_origin = first_basis.copy(), origins[first_origin]
    shapes = np.stack([num_atoms, origin_counts, basis_counts], axis=1)
    kinds, kind = np.unique(shapes, axis=0, return_inverse=True)
    for (atom_count, origin_count, basis_count), group in zip(kinds, _groups(kind), strict=True):
        if origin_count * basis_count == 1:
            continue
        atoms = first_atom[group][:, None] + np.arange(atom_count)
        candidates = origins[first_origin[group][:, None] + np.arange(origin_count)]
        matrices = first_basis[group][:, None] + np.arange(basis_count)
        scores = _scores(coords[atoms], weights[atoms], coords[candidates], inverses[matrices])
        scores = (scores - costs[matrices][:, :, None]).reshape(len(group), -1)
        winner = np.argmax(scores >= scores.max(axis=1, keepdims=True) - _TIE, axis=1)
        chosen[group] = first_basis[group] + winner // origin_count
        chosen_origin[group] = np.take_along_axis(candidates, (winner % origin_count)[:, None], axis=1)[:, 0]
    return chosen, chosen_origin


def _groups(kind: Int[np.ndarray, " crystal"]) -> list[Int[np.ndarray, " member"]]:
    """For each kind 0, 1, 2, ... the positions at which it stands."""
    return np.split(np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))[:-1])


def _origins(
    numbers: Int[np.ndarray, " atom"], num_atoms: Int[np.ndarray, " crystal"]
) -> tuple[Int[np.ndarray, " origin"], Int[np.ndarray, " crystal"]]:
    """The atoms that may be the origin: those of the rarest species, the lightest of equally rare ones."""
    crystal_index = np.repeat(np.arange(len(num_atoms)), num_atoms)
    species, place, counts = np.unique(
        crystal_index * 1000 + numbers, return_inverse=True, return_counts=True
    )
    rank = np.lexsort((species % 1000, counts, species // 1000))
    _, first = np.unique((species // 1000)[rank], return_index=True)
    rarest = np.zeros(len(species), dtype=bool)
    rarest[rank[first]] = True
    return np.flatnonzero(rarest[place]), counts[rank[first]]


def _scores(
    coords: Float[np.ndarray, "crystal atom 3"],
    weights: Float[np.ndarray, "crystal atom"],
    origins: Float[np.ndarray, "crystal origin 3"],
    inverses: Float[np.ndarray, "crystal basis 3 3"],
) -> Float[np.ndarray, "crystal basis origin"]:
    """The score of the atoms for every basis and origin, between 0 and 1 (see `_best_candidates`)."""
    angles = 2.0 * np.pi * np.matmul(coords[:, None], inverses)  # crystal basis atom 3
    at_origin = 2.0 * np.pi * np.matmul(origins[:, None], inverses) + _PHASES
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    references = np.concatenate([_SHARPNESS * np.cos(at_origin), _SHARPNESS * np.sin(at_origin)], axis=-1)
    # cos(x - y) = cos x cos y + sin x sin y: one small matrix product instead of a cosine per pair.
    exponents = np.matmul(references, waves.swapaxes(-1, -2))  # crystal basis origin atom
    return np.matmul(np.exp(exponents - _SHARPNESS.sum()), weights[:, None, :, None])[..., 0]


def _atom_order(
    numbers: Int[np.ndarray, " atom"],
    coords: Float[np.ndarray, "atom 3"],
    crystal_index: Int[np.ndarray, " atom"],
) -> Int[np.ndarray, " atom"]:
    """Order by crystal, atomic number, then x, y, z, where coordinates that nearly agree are equal."""
    on_circle = (coords + _SEAM) % 1.0
    planes = []
    for axis in range(3):
        values = on_circle[:, axis] + 2.0 * crystal_index
        order = np.argsort(values, kind="stable")
        plane = np.empty(len(values), dtype=np.int64)
        plane[order] = np.cumsum(np.diff(values[order], prepend=values[order[:1]]) > _SAME_COORDINATE)
        planes.append(plane)
    x, y, z = on_circle.T
    return np.lexsort((z, y, x, planes[2], planes[1], planes[0], numbers, crystal_index))


def _wrap(coords: Float[np.ndarray, "atom 3"]) -> Float[np.ndarray, "atom 3"]:
    """Into [0, 1); what lies a rounding error below 1 becomes 0."""
    wrapped = coords - np.floor(coords)
    return np.where(wrapped >= 1.0 - _SNAP, 0.0, wrapped)
