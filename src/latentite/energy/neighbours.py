"""Pairs of atoms near each other, periodic images included, for a whole batch.

The search itself is pymatgen's C routine, crystal by crystal; everything that comes after it (`gate.py`,
`chgnet.py`) works on the pairs of all crystals at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from latentite.crystal import CrystalBatch

_SAME = 1e-8
"""Å; an atom and its own image 0 are not neighbours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourList:
    """Every ordered pair of atoms within the cut-off: the vector is `cart[second] + image @ lattice - cart[first]`."""

    first: Int[np.ndarray, " pair"]
    """Position in the batch's packed atoms."""
    second: Int[np.ndarray, " pair"]
    image: Int[np.ndarray, "pair 3"]
    distance: Float[np.ndarray, " pair"]
    """Å."""
    num_pairs: Int[np.ndarray, " crystal"]


def neighbour_list(crystals: CrystalBatch, cutoff: float) -> NeighbourList:
    """All pairs closer than `cutoff` (Å), crystal by crystal; cells must have a volume and finite numbers."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    periodic = np.ones(3, dtype=np.int64)
    first, second, images, distances, num_pairs = [], [], [], [], []
    offset = 0
    for crystal in crystals.to_arrays():
        lattice = np.ascontiguousarray(crystal.lattice)
        cart = np.ascontiguousarray(crystal.frac_coords @ lattice)
        i, j, image, distance = find_points_in_spheres(cart, cart, cutoff, periodic, lattice, _SAME)
        is_other = (i != j) | (distance > _SAME)
        first.append(i[is_other] + offset)
        second.append(j[is_other] + offset)
        images.append(image[is_other])
        distances.append(distance[is_other])
        num_pairs.append(int(is_other.sum()))
        offset += crystal.num_atoms
    if not first:
        empty = np.zeros(0, dtype=np.int64)
        return NeighbourList(
            first=empty, second=empty, image=np.zeros((0, 3), np.int64), distance=np.zeros(0), num_pairs=empty
        )
    return NeighbourList(
        first=np.concatenate(first).astype(np.int64),
        second=np.concatenate(second).astype(np.int64),
        image=np.concatenate(images).astype(np.int64),
        distance=np.concatenate(distances),
        num_pairs=np.array(num_pairs),
    )
