"""Average minimum distances: the geometry of a crystal as a vector, elements left out.

Widdowson, Mosca, Pulido, Kurlin and Cooper (2022), MATCH Commun. Math. Comput. Chem. 87, 529 (AMD). They are the same
for every cell, origin and orientation of a crystal and for its mirror image, and change continuously when atoms move.
They order crystals by likeness (creativity rewards, diversity); small distances prove no match, large ones no
difference in the sense of `StructureMatcher`, so `search.py` does without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import integer_inverse, niggli_transformations

NEIGHBOURS = 100
"""The usual k."""
_AT_ONCE = 2_000_000
"""Distances held in memory at a time."""


def average_minimum_distances(
    crystals: Sequence[CrystalArrays], *, k: int = NEIGHBOURS
) -> Float[np.ndarray, "crystal neighbour"]:
    """AMD of each crystal, Å: the distance to the first, second, ... k-th neighbour, averaged over the atoms.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        k: neighbours, at least 1.

    Raises:
        ValueError: for k below 1, a crystal without atoms or with coordinates that are not finite, or (with its
            position) a flat cell.
    """
    distances = neighbour_distances(crystals, k=k)
    return np.array([rows.mean(axis=0) for rows in distances]).reshape(len(crystals), k)


def amd_distances(
    first: Float[np.ndarray, "first neighbour"], second: Float[np.ndarray, "second neighbour"]
) -> Float[np.ndarray, "first second"]:
    """Chebyshev (L-infinity) distances between AMD vectors, Å."""
    from scipy.spatial.distance import cdist

    return cdist(first, second, metric="chebyshev")


def neighbour_distances(
    crystals: Sequence[CrystalArrays], *, k: int
) -> list[Float[np.ndarray, "atom neighbour"]]:
    """For each atom of each crystal the distances (Å) to its k nearest neighbours, ascending.

    An atom's own images are neighbours, and so are atoms that coincide with it (at distance 0).
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    for position, crystal in enumerate(crystals):
        is_finite = np.isfinite(crystal.frac_coords).all() and np.isfinite(crystal.lattice).all()
        if not crystal.num_atoms or not is_finite:
            raise ValueError(
                f"crystal {position} must have atoms with finite coordinates and a finite lattice"
            )
    if not crystals:
        return []
    # Short vectors keep the box of images small, however skew a cell is given.
    changes = niggli_transformations(np.array([crystal.lattice for crystal in crystals]))
    inverses = integer_inverse(changes)
    return [
        _nearest(crystal.frac_coords @ inverse, change @ crystal.lattice, k)
        for crystal, change, inverse in zip(crystals, changes, inverses, strict=True)
    ]


def _nearest(coords: np.ndarray, lattice: np.ndarray, k: int) -> np.ndarray:
    """All distances below a radius, which grows until it holds k neighbours of every atom."""
    coords = coords - np.floor(coords)
    reach = np.linalg.norm(np.linalg.inv(lattice), axis=0)  # of 1 Å, in fractions of the cell
    volume = abs(np.linalg.det(lattice))
    radius = (3.0 * (k + 1) * volume / (4.0 * np.pi * len(coords))) ** (1.0 / 3.0)
    while True:
        radius *= 1.15
        spans = [np.arange(-n, n + 1) for n in np.ceil(radius * reach).astype(int)]
        steps = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
        low, high = coords.min(axis=0), coords.max(axis=0)
        near = ((steps + high > low - radius * reach) & (steps + low < high + radius * reach)).all(axis=1)
        images = (coords[:, None] + steps[near]).reshape(-1, 3) @ lattice
        if len(images) > k:
            centres = coords @ lattice
            part = max(_AT_ONCE // (3 * len(images)), 1)
            distances = np.concatenate(
                [
                    _ascending(centres[start : start + part], images, k)
                    for start in range(0, len(coords), part)
                ]
            )
            if distances[:, -1].max() < radius:
                return distances[:, 1:]  # without the atom itself


def _ascending(centres: np.ndarray, images: np.ndarray, k: int) -> np.ndarray:
    gap = centres[:, None] - images
    squares = np.einsum("aid,aid->ai", gap, gap)
    return np.sqrt(np.sort(np.partition(squares, k, axis=1)[:, : k + 1], axis=1))
