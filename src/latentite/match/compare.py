"""The verdict of `StructureMatcher.fit`, found on arrays: the same yes or no for a fraction of the work.

pymatgen's matcher (Ong et al. 2013, Comput. Mater. Sci. 68, 314) walks over every lattice of the first crystal
close to that of the second one, and over every translation that lays a chosen atom on one of its kind; it pairs the
atoms so that the sum of squared distances is smallest, takes their mean away and asks whether the largest one is
below stol (V/N)^(1/3). A match is any such candidate, so their order is free. Here they are looked at all at once,
with volumes scaled to one, and each verdict is one of three:

- no, where it is proved. Atom i may go to the places v_ij. A match has |v_i - mean| < stol for all, so that all lie
  within 2 stol of the chosen atom's own. Seen from the translation that lays that atom where the match has it, every
  atom has a place closer than 2 stol. Translations without that ("balls") are no matches, and a lattice none of
  whose translations has it gives none, whatever its tie breaks and its fractional tolerances, which are wider.
- yes, where one candidate's cheapest pairing is unique, lies within those balls and stays below stol.
- unknown: ties (symmetric crystals have them), values at a threshold within rounding. The caller asks the matcher.

Lattices of the first crystal close to that of the second are those of pymatgen's `Lattice.find_all_mappings`; here
what belongs to one crystal is made once (`Comparable`), and volumes are scaled to one (the matcher scales both to the
same volume, and no tolerance depends on which).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import determinant, integer_inverse
from latentite.match.reduced import MatcherSettings, structure_of

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

    inverses: Int[np.ndarray, "lattice 3 3"]
    """Integers that take fractional coordinates there."""
    basis: Float[np.ndarray, "lattice 3 3"]
    """Rows of the averages."""
    reciprocal: Float[np.ndarray, "lattice 3"]
    """Lengths of the averages' reciprocal vectors, without 2 pi."""
    volume: Float[np.ndarray, " lattice"]
    """Of the averages."""
    at_edge: Bool[np.ndarray, " lattice"]
    """True where a tolerance is met, or missed, within rounding."""


def close_lattices(first: Comparable, second: Comparable, settings: MatcherSettings) -> CloseLattices | None:
    """Every lattice of the first crystal with lengths and angles close to those of the second; None for none."""
    triples = _triples(first, second, settings)
    if triples is None:
        return None
    steps, lengths, cosines = triples
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


_FIRST_CHUNK = 8
_CHUNK_ENTRIES = 200_000


class Comparer:
    """Verdicts of pairs for several settings, the matcher's own where `fits` has none."""

    def __init__(self, settings: Sequence[MatcherSettings]) -> None:
        self._settings = sorted(settings, key=lambda one: (-one.stol, -one.ltol, -one.angle_tol))
        self.asked = 0
        """Number of times that the matcher had to be asked."""

    def matching(self, first: Comparable, second: Comparable, names: Collection[str]) -> list[str]:
        """Those names of settings under which `fit(first, second)` says yes.

        Both reduced, of one composition; different numbers of atoms never match.
        """
        if len(first.atomic_numbers) != len(second.atomic_numbers):
            return []
        matched: list[str] = []
        refuted: list[MatcherSettings] = []
        for one in self._settings:
            # No pairing stays below wide tolerances: then none stays below narrower ones. (A yes says nothing.)
            if one.name not in names or any(one.within(other) for other in refuted):
                continue
            verdict = fits(first, second, one)
            if verdict is False:
                refuted.append(one)
            elif verdict or self._ask(first, second, one):
                matched.append(one.name)
        return matched

    def _ask(self, first: Comparable, second: Comparable, settings: MatcherSettings) -> bool:
        self.asked += 1
        structures = structure_of(first.crystal), structure_of(second.crystal)
        return bool(settings.build().fit(*structures, skip_structure_reduction=True))


def fits(first: Comparable, second: Comparable, settings: MatcherSettings) -> bool | None:
    """The verdict of `fit(first, second)`, or None where only the matcher itself can tell.

    Both have the same composition and number of atoms; first and second as the matcher's own arguments.
    """
    lattices = close_lattices(first, second, settings)
    if lattices is None:
        return False
    size = len(first.atomic_numbers)
    unit = (lattices.volume / size) ** (1.0 / 3.0)
    reach = (2.0 * settings.stol * unit[:, None] * lattices.reciprocal).max(axis=0)  # of a ball, in cells
    if (reach > 1.5 - MARGIN).any():
        return None  # more than the nearest 27 images could lie in it
    spans = [(-1.0, 0.0, 1.0) if one > 0.5 - MARGIN else (0.0,) for one in reach]
    coords = first.frac_coords @ lattices.inverses  # [lattice atom 3]
    views = _Views(
        first=first,
        second=second,
        coords=coords,
        metric=lattices.basis / unit[:, None, None],
        images=np.array(list(itertools.product(*spans))),
        stol=settings.stol,
    )
    shifts = coords[:, first.sites[second.anchor_number]] - second.frac_coords[second.anchor]
    which = np.repeat(np.arange(len(coords)), shifts.shape[1])
    shifts = shifts.reshape(-1, 3)
    certain = True
    start, count = 0, _FIRST_CHUNK
    most = max(_CHUNK_ENTRIES // (size * size * len(views.images)), 1)
    while start < len(shifts):
        chunk = slice(start, start + count)
        start, count = start + count, min(4 * count, most)
        candidates = views.in_balls(which[chunk], shifts[chunk])
        if not len(candidates[0]):
            continue
        is_match, is_excluded = views.pairings(*candidates, exclude=certain)
        if (is_match & ~lattices.at_edge[candidates[0]]).any():
            return True
        certain = certain and bool(is_excluded.all())
    return False if certain else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Views:
    """One crystal laid upon another by candidates: a lattice each and a translation."""

    first: Comparable
    second: Comparable
    coords: Float[np.ndarray, "lattice atom 3"]
    """Of the first crystal, in each lattice."""
    metric: Float[np.ndarray, "lattice 3 3"]
    """Rows of the average lattices in units of (V/N)^(1/3)."""
    images: Float[np.ndarray, "image 3"]
    stol: float

    def in_balls(self, which: np.ndarray, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those candidates that have a place closer than 2 stol for every atom."""
        limit = (2.0 * self.stol + MARGIN) ** 2
        for number, rows in self.second.sites.items():
            squares = self._places(rows, self.first.sites[number], which, shifts)[1]
            good = np.all((squares < limit).any(axis=(2, 3)), axis=1)
            which, shifts = which[good], shifts[good]
            if not len(which):
                break
        return which, shifts

    def pairings(
        self, which: np.ndarray, shifts: np.ndarray, *, exclude: bool
    ) -> tuple[Bool[np.ndarray, " candidate"], Bool[np.ndarray, " candidate"]]:
        """Two answers for each candidate: it is a match for certain; no match lays its chosen atom there."""
        size = len(self.first.atomic_numbers)
        everything = np.arange(size)
        vectors, squares = self._places(everything, everything, which, shifts)
        squares[:, self.second.atomic_numbers[:, None] != self.first.atomic_numbers] = np.inf
        limit = (2.0 * self.stol) ** 2
        image = squares.argmin(axis=-1)
        nearest = np.take_along_axis(squares, image[..., None], axis=-1)[..., 0]
        # Beyond the ball a lower bound will do: an optimum inside it is one whatever lies outside.
        column, is_unique = _assign(
            np.where(np.isinf(nearest), 4.0 * size * limit, np.minimum(nearest, limit))
        )
        at = np.arange(len(which))[:, None], everything, column
        inside = np.asarray(nearest[at]) < limit - MARGIN
        clear = is_unique & inside.all(axis=1)
        if len(self.images) > 1:
            two = np.partition(squares[at], 1, axis=-1)[..., :2]
            clear &= (two[..., 1] - two[..., 0] > MARGIN).all(axis=1)
        steps = self.images @ self.metric[which]  # [candidate image 3]
        chosen = vectors[at] + np.take_along_axis(steps, image[at][..., None], axis=1)
        is_match = clear & (_spread(chosen) < self.stol - MARGIN)
        is_excluded = np.zeros(len(which), dtype=bool)
        if exclude and not is_match.any():
            for index in range(len(which)):
                row, place, step = np.nonzero(squares[index] < limit + MARGIN)
                options = vectors[index][row, place] + steps[index][step]
                is_excluded[index] = _no_match(row, place, options, self.stol, size)
                if not is_excluded[index]:
                    break  # one is enough to leave the verdict open
        return is_match, is_excluded

    def _places(
        self, rows: np.ndarray, columns: np.ndarray, which: np.ndarray, shifts: np.ndarray
    ) -> tuple[Float[np.ndarray, "candidate row column 3"], Float[np.ndarray, "candidate row column image"]]:
        """From atoms (rows) of the second to atoms (columns) of the first: vectors without the images' steps,
        and squared lengths with them."""
        moved = self.second.frac_coords[rows] + shifts[:, None]
        difference = self.coords[which][:, None, columns] - moved[:, :, None]
        difference -= np.round(difference)
        metric = self.metric[which]
        flat = difference.reshape(len(which), -1, 3) @ metric
        squares = (flat * flat).sum(axis=-1)[..., None]
        if len(self.images) > 1:
            steps = self.images @ metric
            squares = squares + 2.0 * flat @ steps.transpose(0, 2, 1) + (steps * steps).sum(axis=-1)[:, None]
        shape = difference.shape[:3]
        return flat.reshape(*shape, 3), squares.reshape(*shape, -1)


def _spread(vectors: Float[np.ndarray, "... atom 3"]) -> Float[np.ndarray, "..."]:
    """The longest vector once their mean is taken away."""
    around = vectors - vectors.mean(axis=-2, keepdims=True)
    return np.asarray(np.sqrt((around * around).sum(axis=-1).max(axis=-1)))


def _no_match(row: np.ndarray, place: np.ndarray, vectors: np.ndarray, stol: float, size: int) -> bool:
    """True when it is proved that no choice of one option per row, all places different, can be a match.

    Two atoms of a match are displaced by less than 2 stol relative to each other, so an option without any such
    partner in some row falls away, and so on until none does.
    """
    gap = vectors[:, None] - vectors[None]
    partners = (gap * gap).sum(axis=-1) < (2.0 * stol) ** 2 + MARGIN
    partners &= (place[:, None] != place) & (row[:, None] != row)
    np.fill_diagonal(partners, val=True)
    while True:
        first = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))[: len(row)]
        if len(first) < size:
            return True  # a row without options
        good = np.logical_or.reduceat(partners, first, axis=1).all(axis=1)
        if good.all():
            break
        row, place, vectors, partners = row[good], place[good], vectors[good], partners[np.ix_(good, good)]
    return len(row) == size and bool(_spread(vectors) > stol + MARGIN)


def _assign(cost: Float[np.ndarray, "candidate row column"]) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest one-to-one assignment of each matrix, and whether no other is as cheap within `MARGIN`."""
    count, size, _ = cost.shape
    column = cost.argmin(axis=2)
    if size == 1:
        return column, np.ones(count, dtype=bool)
    easy = (np.sort(column, axis=1) == np.arange(size)).all(axis=1)
    two = np.partition(cost, 1, axis=2)[..., :2]
    is_unique = easy & (two[..., 1] - two[..., 0] > MARGIN).all(axis=1)
    for index in np.flatnonzero(~easy):
        column[index] = linear_sum_assignment(cost[index])[1]
    hard = np.flatnonzero(~is_unique)
    if len(hard):
        # Another assignment differs by cycles of exchanges; the cheapest cycles by Floyd and Warshall.
        exchange = np.take_along_axis(cost[hard], np.repeat(column[hard][:, None], size, axis=1), axis=2)
        exchange -= np.diagonal(exchange, axis1=1, axis2=2)[:, :, None].copy()
        diagonal = np.arange(size)
        exchange[:, diagonal, diagonal] = np.inf
        for via in range(size):
            np.minimum(exchange, exchange[:, :, via, None] + exchange[:, None, via], out=exchange)
        is_unique[hard] = exchange[:, diagonal, diagonal].min(axis=1) > MARGIN
    return column, is_unique
