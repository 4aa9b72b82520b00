"""One canonical description of a crystal by its orbits, and the equivalent ones.

Of the descriptions that the Euclidean normalizer makes of one crystal (other origins, mirrored axes) the canonical one
has the smallest letters, then the smallest elements, then the smallest coordinates. Where the origin is free along an
axis, it is chosen so that the first orbit has its coordinate there at 0, in every description.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from latentite.symmetry.normalizers import Normalizer, normalizer
from latentite.symmetry.positions import space_group, wyckoff_table

_STEPS = 100_000
"""Coordinates are compared in units of 1/100,000: closer ones are equal."""
_KINDS = 1000
"""Letter and element as one number: letter times this plus element."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Orbits:
    """One crystal as numpy arrays; `OrbitBatch` packs many."""

    space_group: int
    cell: Float[np.ndarray, " 6"]
    """As in `latentite.symmetry.cells`; the normalizer leaves it as it is."""
    position: Int[np.ndarray, " orbit"]
    """Row of `wyckoff_table()`."""
    element: Int[np.ndarray, " orbit"]
    """Atomic number."""
    coords: Float[np.ndarray, "orbit 3"]
    """Free coordinates in [0, 1), 0 after the last."""


@dataclass(frozen=True, slots=True, eq=False)
class _Descriptions:
    """Candidates for one crystal, orbits of each in their order."""

    kinds: Int[np.ndarray, "candidate orbit"]
    keys: Int[np.ndarray, "candidate orbit"]
    """Coordinates as one number each, for comparison."""
    coords: Float[np.ndarray, "candidate orbit 3"]

    def orbits(self, place: int, like: Orbits) -> Orbits:
        """One of them."""
        return Orbits(
            space_group=like.space_group,
            cell=like.cell,
            position=self.kinds[place] // _KINDS,
            element=self.kinds[place] % _KINDS,
            coords=self.coords[place],
        )


def canonical(orbits: Orbits) -> Orbits:
    """The canonical description of a crystal.

    Args:
        orbits: any description of it; the origin may be anywhere along polar axes, orbits in any order.
    """
    members = normalizer(orbits.space_group)
    kinds = _kinds(orbits, members)
    ranks = np.sort(kinds, axis=1)
    best = np.lexsort(ranks.T[::-1])[0]
    winners = np.flatnonzero((ranks == ranks[best]).all(axis=1))
    candidates = _describe(orbits, members, kinds, winners)
    smallest = np.lexsort(candidates.keys.T[::-1])[0] if len(candidates.keys) > 1 else 0
    return candidates.orbits(int(smallest), orbits)


def equivalent(orbits: Orbits, rng: np.random.Generator) -> Orbits:
    """One of the descriptions that the normalizer makes, each of its members with the same chance.

    Coordinates are the smallest of each orbit, orbits in their order, and the first one is at 0 along polar axes.
    """
    members = normalizer(orbits.space_group)
    kinds = _kinds(orbits, members)
    member = rng.integers(len(kinds), size=1)
    candidates = _describe(orbits, members, kinds, member)
    allowed = np.arange(len(candidates.keys))
    if space_group(orbits.space_group).polar_axes:
        allowed = np.flatnonzero(_starts_at_zero(candidates, orbits.space_group))
    return candidates.orbits(int(rng.choice(allowed)), orbits)


def equivalents(orbits: Orbits) -> list[Orbits]:
    """All different descriptions that `equivalent` draws from, the canonical one first."""
    members = normalizer(orbits.space_group)
    kinds = _kinds(orbits, members)
    candidates = _describe(orbits, members, kinds, np.arange(len(kinds)))
    allowed = np.flatnonzero(_starts_at_zero(candidates, orbits.space_group))
    ranks = np.concatenate([candidates.kinds, candidates.keys], axis=1)[allowed]
    _, first = np.unique(ranks, axis=0, return_index=True)
    return [candidates.orbits(int(place), orbits) for place in allowed[first]]


def _kinds(orbits: Orbits, members: Normalizer) -> Int[np.ndarray, "member orbit"]:
    """Letter and element of each orbit under each member."""
    first = int(wyckoff_table().first[orbits.space_group])
    return members.target[:, orbits.position - first] * _KINDS + orbits.element


def _describe(
    orbits: Orbits,
    members: Normalizer,
    kinds: Int[np.ndarray, "member orbit"],
    chosen: Int[np.ndarray, " chosen"],
) -> _Descriptions:
    """Descriptions by some members; along polar axes, with each place of an orbit of the first kind at 0."""
    table = wyckoff_table()
    own = orbits.position - int(table.first[orbits.space_group])
    places = np.ix_(chosen, own)
    images = np.einsum("comij,oj->comi", members.linear[places], orbits.coords) + members.shift[places]
    kinds = kinds[chosen]
    polar = list(space_group(orbits.space_group).polar_axes)
    if polar:
        # All orbits of the first kind, at all their places: of descriptions that differ by the origin alone, none
        # is left out, so that the smallest one does not depend on the description that came in.
        row, anchor = np.nonzero(kinds == kinds.min(axis=1, keepdims=True))
        origin = _along(images[row, anchor], kinds[row, anchor] // _KINDS, polar)
        origin, row = origin.reshape(-1, 3), np.repeat(row, images.shape[2])
        steps = np.rint(origin * _STEPS).astype(int) % _STEPS
        _, first = np.unique(np.concatenate([row[:, None], steps], axis=1), axis=0, return_index=True)
        origin, row = origin[first], row[first]
        kinds, images = kinds[row], images[row]
        free = table.free_axes[kinds // _KINDS]
        moved = np.where(
            np.isin(free, polar), np.take_along_axis(origin[:, None], np.maximum(free, 0), axis=2), 0.0
        )
        images = images - moved[:, :, None]
    images = images - np.floor(images)
    steps = np.rint(images * _STEPS).astype(np.int64) % _STEPS
    keys = (steps[..., 0] * _STEPS + steps[..., 1]) * _STEPS + steps[..., 2]
    smallest = keys.argmin(axis=2)[:, :, None]
    keys = np.take_along_axis(keys, smallest, axis=2)[:, :, 0]
    coords = np.take_along_axis(images, smallest[..., None], axis=2)[:, :, 0]
    coords[np.rint(coords * _STEPS) == _STEPS] = 0.0
    order = np.lexsort((keys, kinds), axis=-1)
    return _Descriptions(
        np.take_along_axis(kinds, order, axis=1),
        np.take_along_axis(keys, order, axis=1),
        np.take_along_axis(coords, order[..., None], axis=1),
    )


def _along(
    coords: Float[np.ndarray, "anchor map 3"], position: Int[np.ndarray, " anchor"], polar: list[int]
) -> Float[np.ndarray, "anchor map 3"]:
    """Free coordinates by axis, those along axes that are not polar 0."""
    free = wyckoff_table().free_axes[position]
    by_axis = np.zeros_like(coords)
    for column in range(3):
        for axis in polar:
            by_axis[..., axis] += np.where((free[:, column] == axis)[:, None], coords[..., column], 0.0)
    return by_axis


def _starts_at_zero(candidates: _Descriptions, number: int) -> Bool[np.ndarray, " candidate"]:
    """Descriptions whose first orbit is at 0 along polar axes."""
    free = wyckoff_table().free_axes[candidates.kinds[:, 0] // _KINDS]
    is_polar = np.isin(free, space_group(number).polar_axes)
    return ~(is_polar & (np.rint(candidates.coords[:, 0] * _STEPS) != 0)).any(axis=1)
