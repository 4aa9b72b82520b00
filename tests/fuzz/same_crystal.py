"""Whether two crystals are the same one, whatever cell, origin and order of atoms they are written in."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from fuzz.case import Arrays

NUM_NEIGHBORS = 12
TOLERANCE = 0.05
"""Å, of the distances to neighbours; what is read wrongly is off by much more."""


def difference(found: Arrays, right: Arrays) -> str | None:
    """How the crystals differ, or None."""
    if wrong := unlike(found, shares(right[0]), abs(np.linalg.det(right[2])) / len(right[0])):
        return wrong
    if _distances_agree(found, right) or _matches(found, right):
        return None
    return "another arrangement of the same atoms"


def unlike(found: Arrays, right: dict[int, float], volume: float | None) -> str | None:
    """How a crystal differs from shares of its atoms and a volume per atom (Å^3), or None."""
    ours = shares(found[0])
    if ours.keys() != right.keys() or any(abs(ours[number] - right[number]) > 1e-6 for number in ours):
        return f"composition {ours} instead of {right}"
    per_atom = abs(np.linalg.det(found[2])) / len(found[0])
    if volume is not None and abs(per_atom / volume - 1.0) > 0.01:
        return f"{per_atom:.3f} Å^3 per atom instead of {volume:.3f}"
    return None


def shares(numbers: np.ndarray) -> dict[int, float]:
    """Fraction of atoms by atomic number."""
    kinds, counts = np.unique(numbers, return_counts=True)
    return {int(kind): float(count) / len(numbers) for kind, count in zip(kinds, counts, strict=True)}


def _distances_agree(found: Arrays, right: Arrays) -> bool:
    """Compares for every atom the distances to its neighbours, element by element."""
    ours, theirs = environments(*found), environments(*right)
    if len(ours) > len(theirs):
        ours, theirs = theirs, ours
    if len(theirs) % len(ours):
        return False
    ours = np.repeat(ours, len(theirs) // len(ours), axis=0)
    cost = np.abs(ours[:, None] - theirs[None]).max(-1)
    rows, columns = linear_sum_assignment(np.minimum(cost, 1e3))
    return bool(cost[rows, columns].max() < TOLERANCE)


def environments(numbers: np.ndarray, coords: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """[atom 1 + kind * neighbor]: atomic number (times 1000), then sorted distances to each element in Å."""
    volume = abs(np.linalg.det(lattice))
    normals = np.cross(lattice[[1, 2, 0]], lattice[[2, 0, 1]])
    heights = volume / np.linalg.norm(normals, axis=1)
    radius = 1.5 * (NUM_NEIGHBORS * 3 * volume / (4 * np.pi)) ** (1 / 3) if len(numbers) < 4 else 8.0
    reach = [int(np.ceil(radius / height)) + 1 for height in heights]
    shifts = np.stack(np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), -1).reshape(-1, 3)
    vectors = (coords[None, :, None] - coords[:, None, None] + shifts) @ lattice
    distances = np.sqrt((vectors**2).sum(-1)).reshape(len(numbers), len(numbers), -1)
    distances[distances < 1e-6] = np.inf
    columns = [1000.0 * numbers[:, None]]
    for kind in np.unique(numbers):
        to_kind = distances[:, numbers == kind].reshape(len(numbers), -1)
        nearest = np.sort(to_kind, axis=1)[:, :NUM_NEIGHBORS]
        columns.append(np.where(nearest < radius, nearest, radius))
    return np.concatenate(columns, axis=1)


def _matches(found: Arrays, right: Arrays) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    matcher = StructureMatcher(ltol=0.02, stol=0.05, angle_tol=1.0, scale=False)
    first, second = (
        Structure(Lattice(lattice), numbers, coords) for numbers, coords, lattice in (found, right)
    )
    return bool(matcher.fit(first, second))
