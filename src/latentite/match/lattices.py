"""Lattices of one crystal that are close to that of another: where every comparison begins.

pymatgen finds the same ones by `Lattice.find_all_mappings`; here what belongs to one crystal is made once, and
volumes are scaled to one (the matcher scales both to the same volume, and no tolerance depends on which). Comes
after `reduced.py`; before `compare.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import determinant, integer_inverse
from latentite.match.settings import MatcherSettings

MARGIN = 1e-8
"""Far above the rounding of double precision in any quantity here, far below what a verdict should turn on."""


class Comparable:
    """A reduced crystal with what its comparisons need, made once: volume one, sites by species."""

    def __init__(self, crystal: CrystalArrays) -> None:
        atomic_numbers, lattice = crystal.atomic_numbers, crystal.lattice
        self.crystal = crystal
        self.atomic_numbers = atomic_numbers
        self.frac_coords = crystal.frac_coords
        self.basis = lattice / abs(np.linalg.det(lattice)) ** (1.0 / 3.0)
        self.lengths: Float[np.ndarray, " 3"] = np.sqrt((self.basis**2).sum(axis=1))
        unit = self.basis / self.lengths[:, None]
        cosines = (unit @ unit.T)[[1, 2, 0], [2, 0, 1]]
        self.angles: Float[np.ndarray, " 3"] = np.arccos(np.clip(cosines, -1.0, 1.0))
        elements, kind, counts = np.unique(atomic_numbers, return_inverse=True, return_counts=True)
        self.anchor = int(np.argmin(counts[kind]))
        """The atom that translations are chosen for: the first one of the rarest kind, as the matcher has it."""
        self.anchor_number = int(atomic_numbers[self.anchor])
        self.sites: dict[int, Int[np.ndarray, " site"]] = {
            int(elements[k]): np.flatnonzero(kind == k) for k in np.argsort(counts, kind="stable")
        }
        self._radius = 0.0

    @cached_property
    def _reach(self) -> Float[np.ndarray, " 3"]:
        return np.sqrt((np.linalg.inv(self.basis) ** 2).sum(axis=0))

    def vectors(self, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lattice vectors up to a radius and some beyond: integers [vector 3], lengths, directions."""
        if radius > self._radius:
            self._radius = 1.15 * radius
            spans = [np.arange(-n, n + 1) for n in np.floor(self._radius * self._reach + 1e-6).astype(int)]
            steps = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
            vectors = steps @ self.basis
            lengths = np.sqrt((vectors**2).sum(axis=1))
            near = (lengths <= self._radius) & (lengths > 0.0)
            self._vectors = steps[near], lengths[near], vectors[near] / lengths[near, None]
        return self._vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class CloseLattices:
    """Lattices of one crystal close to that of another, the closest first, and the averages of the two."""

    inverses: Float[np.ndarray, "lattice 3 3"]
    """Integers that take fractional coordinates there."""
    basis: Float[np.ndarray, "lattice 3 3"]
    """Rows of the averages."""
    reciprocal: Float[np.ndarray, "lattice 3"]
    """Lengths of the averages' reciprocal vectors, without 2 pi."""
    volume: Float[np.ndarray, " lattice"]
    """Of the averages."""
    at_edge: Bool[np.ndarray, " lattice"]
    """Whether a tolerance is met, or missed, within rounding."""


def close_lattices(first: Comparable, second: Comparable, settings: MatcherSettings) -> CloseLattices | None:
    """Every lattice of the first crystal with lengths and angles close to those of the second; None for none."""
    found = _triples(first, second, settings)
    if found is None:
        return None
    steps, lengths, cosines = found
    angles = np.arccos(np.clip(cosines, -1.0, 1.0))
    change, turn = lengths / second.lengths, np.abs(angles - second.angles)
    order = np.argsort((np.log(change) ** 2 + turn**2).sum(axis=1), kind="stable")
    change, turn = change[order], turn[order]
    stretch = 1.0 + settings.ltol
    at_edge = (np.abs(change - stretch) < 2 * MARGIN) | (np.abs(change - 1.0 / stretch) < 2 * MARGIN)
    at_edge |= np.abs(turn - np.deg2rad(settings.angle_tol)) < 1e-6  # an arc cosine loses digits
    basis, reciprocal, volume = _from_parameters(
        (lengths + second.lengths)[order] / 2, (angles + second.angles)[order] / 2
    )
    return CloseLattices(
        inverses=integer_inverse(steps[order]),
        basis=basis,
        reciprocal=reciprocal,
        volume=volume,
        at_edge=at_edge.any(axis=1),
    )


def _triples(
    first: Comparable, second: Comparable, settings: MatcherSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Integer rows [lattice 3 3], lengths and cosines of the angles [lattice 3], within tolerances and margin."""
    stretch = 1.0 + settings.ltol
    steps, lengths, unit = first.vectors(float(second.lengths.max()) * stretch + 1e-6)
    ratio = lengths / second.lengths[:, None]
    close = (ratio < stretch + MARGIN) & (ratio > 1.0 / stretch - MARGIN)
    a, b, c = (np.flatnonzero(row) for row in close)
    tolerance = np.deg2rad(settings.angle_tol)
    highest = np.cos(np.maximum(second.angles - tolerance, 0.0)) + MARGIN
    lowest = np.cos(np.minimum(second.angles + tolerance, np.pi)) - MARGIN
    cosines = unit[b] @ unit[c].T, unit[a] @ unit[c].T, unit[a] @ unit[b].T
    alpha, beta, gamma = ((cosine < highest[k]) & (cosine > lowest[k]) for k, cosine in enumerate(cosines))
    i, j = np.nonzero(gamma)
    pair, k = np.nonzero(alpha[j] & beta[i])
    i, j = i[pair], j[pair]
    rows = np.stack((steps[a[i]], steps[b[j]], steps[c[k]]), axis=1)
    keep = np.flatnonzero(np.abs(determinant(rows)) == 1)
    if not len(keep):
        return None
    i, j, k = i[keep], j[keep], k[keep]
    return (
        rows[keep],
        np.stack((lengths[a[i]], lengths[b[j]], lengths[c[k]]), axis=1),
        np.stack((cosines[0][j, k], cosines[1][i, k], cosines[2][i, j]), axis=1),
    )


def _from_parameters(
    lengths: Float[np.ndarray, "lattice 3"], angles: Float[np.ndarray, "lattice 3"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of lattices with a along x and b in the plane of x and y, reciprocal lengths and volumes."""
    cosine, sine = np.cos(angles), np.sin(angles)
    flat = 1.0 - (cosine**2).sum(axis=1) + 2.0 * cosine.prod(axis=1)
    height = np.sqrt(np.maximum(flat, 1e-30))
    basis = np.zeros((len(lengths), 3, 3))
    basis[:, 0, 0] = 1.0
    basis[:, 1, 0], basis[:, 1, 1] = cosine[:, 2], sine[:, 2]
    basis[:, 2, 0] = cosine[:, 1]
    basis[:, 2, 1] = (cosine[:, 0] - cosine[:, 1] * cosine[:, 2]) / sine[:, 2]
    basis[:, 2, 2] = height / sine[:, 2]
    return basis * lengths[:, :, None], sine / (lengths * height[:, None]), lengths.prod(axis=1) * height
