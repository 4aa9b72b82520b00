"""From atoms to orbits: space group and orbits of a crystal, in one canonical description.

moyopy finds the space group and the symmetrised conventional cell; its letters are not used. Each orbit is matched to the
table of positions instead, so that coordinates, letters and operations always belong together. Of the descriptions that
the Euclidean normalizer makes of one crystal (other origins, mirrored axes) the one with the smallest letters, then the
smallest coordinates, is kept; where the origin is free along an axis, the first orbit has its coordinate there at 0.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from jaxtyping import Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.symmetry.cells import cell_components
from latentite.symmetry.orbits import OrbitBatch
from latentite.symmetry.positions import space_group, wyckoff_table

SYMPREC = 0.1
"""Å; symmetry of training crystals is found at this tolerance first."""
FALLBACK_SYMPREC = 0.01
"""Å; and at this one where the first gives no description that gives back the crystal."""
_TOLERANCE = 2e-4
"""Of fractional coordinates that must agree after symmetrisation."""
_DIGITS = 5
"""Decimals to which coordinates are compared between equivalent descriptions."""


class EncodingError(ValueError):
    """A crystal without a description by orbits, with the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Orbits:
    """One crystal as numpy arrays; `OrbitBatch` packs many."""

    space_group: int
    cell: Float[np.ndarray, " 6"]
    position: Int[np.ndarray, " orbit"]
    element: Int[np.ndarray, " orbit"]
    coords: Float[np.ndarray, "orbit 3"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Normalizer:
    """Euclidean normalizer of a group, modulo the group itself and shifts along its polar axes."""

    linear: Int[np.ndarray, "member 3 3"]
    shift: Float[np.ndarray, "member 3"]
    letters: Int[np.ndarray, "member position"]
    """Place in the table of what each position of the group (counted from its first) becomes."""


@cache
def _normalizer_rows() -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
    rows: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    with files("latentite.symmetry").joinpath("normalizers.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            linear = np.array(row["linear"].split(), dtype=int).reshape(3, 3)
            shift = np.array(row["shift_24"].split(), dtype=float) / 24
            rows.setdefault(int(row["space_group"]), []).append((linear, shift))
    return rows


@cache
def normalizer(number: int) -> Normalizer:
    """The normalizer of a space group; its first member is the identity."""
    rows = _normalizer_rows()[number]
    table = wyckoff_table()
    first, count = int(table.first[number]), int(table.count[number])
    generic = np.array([0.1234567, 0.2718281, 0.3819660])
    points = table.matrix[first : first + count] @ generic + table.offset[first : first + count]
    letters = np.stack(
        [
            [match(linear @ point + shift, number)[0] for point in points]
            for linear, shift in rows
        ]
    )
    return Normalizer(
        linear=np.stack([linear for linear, _ in rows]),
        shift=np.stack([shift for _, shift in rows]),
        letters=letters,
    )


def _images(points: Float[np.ndarray, "point 3"], number: int) -> Float[np.ndarray, "point operation 3"]:
    group = space_group(number)
    return np.einsum("oij,pj->poi", group.rotations, points) + group.translations


def match(point: Float[np.ndarray, " 3"], number: int) -> tuple[int, Float[np.ndarray, "choice 3"]]:
    """Position of a point, and the free coordinates that describe its orbit.

    Args:
        point: fractional coordinates in the conventional cell.
        number: the space group.

    Returns:
        The place in the table, and the choices of free coordinates in [0, 1), without repeats.

    Raises:
        EncodingError: when it is on no position (cannot be: the general position takes every point).
    """
    table = wyckoff_table()
    images = _images(point[None], number)[0]
    first, count = int(table.first[number]), int(table.count[number])
    span = slice(first, first + count)
    axes = np.maximum(table.free_axes[span], 0)
    free = images[:, axes] * (np.arange(3) < table.num_free[span, None])
    residual = images[:, None] - np.einsum("pij,opj->opi", table.matrix[span], free) - table.offset[span]
    fits = np.abs(residual - np.round(residual)).max(axis=-1) < _TOLERANCE
    position = int(np.argmax(fits.any(axis=0)))  # Letters go from the most special position to the general one.
    dims = table.num_free[span]
    fitting = np.flatnonzero(fits.any(axis=0))
    if not len(fitting):
        raise EncodingError(f"no Wyckoff position of space group {number} fits {point}")
    position = int(fitting[np.argmin(dims[fitting])])
    return first + position, _distinct(free[fits[:, position], position])


def _distinct(free: Float[np.ndarray, "choice 3"]) -> Float[np.ndarray, "choice 3"]:
    """Free coordinates wrapped into [0, 1), without repeats, the smallest first."""
    wrapped = np.round(free % 1, 9) % 1
    _, first = np.unique(np.round(wrapped, _DIGITS) % 1, axis=0, return_index=True)
    return wrapped[first]


def encode(crystal: CrystalArrays, *, symprec: float = SYMPREC) -> Orbits:
    """The canonical description of a crystal at one tolerance.

    Args:
        crystal: any cell of it.
        symprec: Å.

    Raises:
        EncodingError: when moyopy finds no symmetry, or orbits do not add up to the cell.
    """
    import moyopy

    cell = moyopy.Cell(
        crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist()
    )
    try:
        dataset = moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.standard())
    except BaseException as error:  # Its errors, and Rust's panics, which are no `Exception`.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise EncodingError(f"moyopy finds no symmetry at {symprec} Å: {error}") from None
    standard = dataset.std_cell
    points, numbers = np.array(standard.positions), np.array(standard.numbers)
    basis = np.array(standard.basis)
    sites = _sites(points, numbers, dataset.number)
    lengths = np.linalg.norm(basis, axis=1)
    unit = basis / lengths[:, None]
    angles = np.degrees(np.arccos(np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)))
    components = cell_components(lengths, angles, dataset.number, len(points))
    position, element, coords = _canonical(sites, dataset.number)
    return Orbits(dataset.number, components, position, element, coords)


def _sites(
    points: Float[np.ndarray, "atom 3"], numbers: Int[np.ndarray, " atom"], number: int
) -> list[tuple[int, int, Float[np.ndarray, " 3"]]]:
    """Position, element and one point of each orbit of a conventional cell."""
    table, sites = wyckoff_table(), []
    left = np.ones(len(points), dtype=bool)
    while left.any():
        first = int(np.argmax(left))
        position, choices = match(points[first], number)
        exact = table.matrix[position] @ choices[0] + table.offset[position]
        images = _images(exact[None], number)[0]
        gaps = points[:, None] - images
        same = (np.abs(gaps - np.round(gaps)).max(axis=-1) < 10 * _TOLERANCE).any(axis=1) & left
        if same.sum() != table.multiplicity[position] or len(set(numbers[same].tolist())) != 1:
            raise EncodingError(
                f"an orbit of space group {number} has {int(same.sum())} atoms, not {table.multiplicity[position]}"
            )
        sites.append((position, int(numbers[first]), exact))
        left &= ~same
    return sites


def _canonical(
    sites: list[tuple[int, int, Float[np.ndarray, " 3"]]], number: int
) -> tuple[Int[np.ndarray, " orbit"], Int[np.ndarray, " orbit"], Float[np.ndarray, "orbit 3"]]:
    """The smallest of all descriptions of these sites."""
    table, group, members = wyckoff_table(), space_group(number), normalizer(number)
    first = int(table.first[number])
    position = np.array([site[0] for site in sites])
    element = np.array([site[1] for site in sites])
    points = np.stack([site[2] for site in sites])
    letters = members.letters[:, position - first]
    ranks = np.sort(letters * 1000 + element, axis=1)
    best = min(map(tuple, ranks.tolist()))
    winners = [k for k, rank in enumerate(map(tuple, ranks.tolist())) if rank == best]
    found: tuple[tuple, np.ndarray, np.ndarray] | None = None
    for member in winners:
        moved = points @ members.linear[member].T + members.shift[member]
        keys = letters[member] * 1000 + element
        # Where the origin is free along an axis, an orbit of the first kind has 0 there: each one of it is tried.
        anchors = np.flatnonzero(keys == keys.min()) if group.polar_axes else [0]
        for anchor in anchors:
            shift = np.zeros(3)
            axes = list(group.polar_axes)
            shift[axes] = -moved[anchor][axes]
            coords = np.stack(
                [_smallest(point, int(letter), number) for point, letter in zip(moved + shift, letters[member], strict=True)]
            )
            order = np.lexsort((coords[:, 2], coords[:, 1], coords[:, 0], keys))
            key = tuple(np.round(coords[order], _DIGITS).ravel().tolist())
            if found is None or key < found[0]:
                found = (key, order, coords[order])
                chosen = letters[member][order]
    assert found is not None
    return chosen, element[found[1]], found[2]


def _smallest(point: Float[np.ndarray, " 3"], position: int, number: int) -> Float[np.ndarray, " 3"]:
    """The smallest free coordinates of the orbit of a point that is on a known position."""
    table = wyckoff_table()
    if table.num_free[position] == 0:
        return np.zeros(3)
    images = _images(point[None], number)[0]
    free = images[:, np.maximum(table.free_axes[position], 0)] * (np.arange(3) < table.num_free[position])
    residual = images - free @ table.matrix[position].T - table.offset[position]
    fits = np.abs(residual - np.round(residual)).max(axis=-1) < 10 * _TOLERANCE
    return _distinct(free[fits])[0]


def pack(crystals: Sequence[Orbits]) -> OrbitBatch:
    """Many descriptions as one batch, float32."""
    return OrbitBatch(
        space_group=torch.tensor([one.space_group for one in crystals], dtype=torch.long),
        cell=torch.tensor(np.array([one.cell for one in crystals]), dtype=torch.float32).reshape(-1, 6),
        num_orbits=torch.tensor([len(one.position) for one in crystals], dtype=torch.long),
        position=torch.tensor(np.concatenate([one.position for one in crystals]), dtype=torch.long),
        element=torch.tensor(np.concatenate([one.element for one in crystals]), dtype=torch.long),
        coords=torch.tensor(np.concatenate([one.coords for one in crystals]), dtype=torch.float32),
    )
