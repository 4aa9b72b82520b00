"""Geometry of each crystal: volume, smallest distances, space groups, average minimum distances.

CDVAE (Xie et al. 2022, arXiv 2110.06197, section 5.2 and its code) calls a structure valid when the smallest distance
between two atoms is at least 0.5 Å and the volume of the cell at least 0.1 Å^3. It leaves out the distance of an atom
to its own periodic images; `min_distances` gives both numbers.

Space groups are found at several tolerances, by the search of `data/properties.py`: a crystal that is symmetric only
at 0.1 Å is not symmetric yet.

Average minimum distances (AMD; Widdowson, Mosca, Pulido, Kurlin and Cooper 2022, MATCH Commun. Math. Comput. Chem. 87,
529) are the geometry of a crystal as a vector, elements left out. They are the same for every cell, origin and
orientation of a crystal and for its mirror image, and change continuously when atoms move. They order crystals by
likeness (creativity rewards); small distances prove no match, large ones no difference in the sense of
`StructureMatcher`, so `match/` does without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import product

import numpy as np
from jaxtyping import Float

from latentite.base.machine import map_in_order
from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import integer_inverse, niggli_transformations
from latentite.data.properties import space_group_number

_SHIFTS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=float)
_NUMBERS_AT_ONCE = 4_000_000
_FLAT = 1e-6
"""Å^3; the reduction of a cell without volume may never come to an end."""


def volumes(crystals: Sequence[CrystalArrays]) -> Float[np.ndarray, " crystal"]:
    """Å^3 of each cell."""
    return (
        np.abs(np.linalg.det(np.stack([crystal.lattice for crystal in crystals])))
        if crystals
        else np.zeros(0)
    )


def min_distances(
    crystals: Sequence[CrystalArrays],
) -> tuple[Float[np.ndarray, " crystal"], Float[np.ndarray, " crystal"]]:
    """Smallest periodic distances (Å): between two atoms (infinite for a single atom), and of an atom to its
    own image. NaN for a cell so flat that it cannot be reduced.

    Computed in the Niggli cell, where the nearest image of a wrapped difference is at most one cell away along
    each axis; so the result is exact for every cell. Crystals with equally many atoms are treated at once.
    """
    between, own = np.full(len(crystals), np.nan), np.full(len(crystals), np.nan)
    groups: dict[int, list[int]] = {}
    transformations = _transformations(crystals)
    for position in transformations:
        groups.setdefault(crystals[position].num_atoms, []).append(position)
    for count, positions in groups.items():
        step = max(1, _NUMBERS_AT_ONCE // (len(_SHIFTS) * count * count))
        for start in range(0, len(positions), step):
            chosen = positions[start : start + step]
            matrices = np.stack([transformations[position] for position in chosen])
            coords = np.stack([crystals[position].frac_coords for position in chosen]) @ integer_inverse(
                matrices
            )
            lattices = matrices @ np.stack([crystals[position].lattice for position in chosen])
            between[chosen], own[chosen] = _smallest(coords, lattices)
    return between, own


def _transformations(crystals: Sequence[CrystalArrays]) -> dict[int, np.ndarray]:
    """Integer matrices to the Niggli cell by position, of those that have one."""
    transformations: dict[int, np.ndarray] = {}
    for position, volume in enumerate(volumes(crystals)):
        if volume > _FLAT:
            with suppress(ValueError):
                transformations[position] = niggli_transformations(crystals[position].lattice[None])[0]
    return transformations


def _smallest(
    coords: Float[np.ndarray, "crystal atom 3"], lattices: Float[np.ndarray, "crystal 3 3"]
) -> tuple[Float[np.ndarray, " crystal"], Float[np.ndarray, " crystal"]]:
    """Both distances in reduced cells."""
    images = _SHIFTS @ lattices  # crystal shift 3
    squares = (images**2).sum(-1)
    own = np.sqrt(np.where((_SHIFTS == 0).all(-1), np.inf, squares).min(-1))
    first, second = np.triu_indices(coords.shape[1], k=1)
    if len(first) == 0:
        return np.full(len(coords), np.inf), own
    difference = coords[:, first] - coords[:, second]
    vectors = (difference - np.round(difference)) @ lattices  # crystal pair 3
    # |v + s|^2 = |v|^2 + 2 v.s + |s|^2 needs no array of all vectors of all images.
    squared = (vectors**2).sum(-1)[..., None] + 2 * vectors @ images.transpose(0, 2, 1)
    squared += squares[:, None, :]
    return np.sqrt(np.maximum(squared.min((-1, -2)), 0.0)), own


SYMPRECS = (0.01, 0.1, 0.2)
"""Å: the libraries' usual default, the Materials Project's value, and a generous one for raw samples."""

_CHUNK = 256


def space_groups(
    crystals: Sequence[CrystalArrays],
    *,
    symprecs: Sequence[float] = SYMPRECS,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
    keep: Callable[[int, np.ndarray], None] = lambda first, groups: None,
) -> Float[np.ndarray, "crystal symprec"]:
    """Space group number of each crystal at each tolerance (Å); NaN where the search fails.

    Args:
        crystals: `(atomic_numbers, frac_coords, lattice)` each.
        symprecs: tolerances, Å.
        workers: processes; None for all cores. They do not change the result.
        advance: told how many more crystals are done.
        keep: given the position of a first crystal and the space groups from there on, as soon as they are
            known.
    """
    chunks = [(start, crystals[start : start + _CHUNK]) for start in range(0, len(crystals), _CHUNK)]
    done = map_in_order(
        partial(_space_groups, symprecs=tuple(symprecs)),
        chunks,
        workers=workers,
        advance=lambda chunk: advance(len(chunk[1])),
        keep=lambda chunk, groups: keep(chunk[0], groups),
    )
    return np.concatenate(done) if done else np.zeros((0, len(symprecs)))


def _space_groups(chunk: tuple[int, Sequence[CrystalArrays]], *, symprecs: tuple[float, ...]) -> np.ndarray:
    groups = [
        [
            space_group_number(crystal.atomic_numbers, crystal.frac_coords, crystal.lattice, symprec=symprec)
            for symprec in symprecs
        ]
        for crystal in chunk[1]
    ]
    return np.array(groups, dtype=float)  # None becomes NaN


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
