"""From atoms to orbits: space group and orbits of a crystal, in its canonical description.

moyopy finds the space group and the symmetrised conventional cell; its letters are not used. Each orbit is matched to
the table of positions instead, so that coordinates, letters and operations always belong together. What comes out is
held against what came in: each atom must lie near its own place in the decoded crystal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from jaxtyping import Bool, Float, Int

from latentite.crystal_arrays import CrystalArrays
from latentite.data.niggli import niggli_transformations
from latentite.symmetry.cells import cell_components
from latentite.symmetry.descriptions import Orbits, canonical
from latentite.symmetry.positions import space_group, wyckoff_table

SYMPREC = 0.1
"""Å; symmetry of training crystals is found at this tolerance first."""
FALLBACK_SYMPREC = 0.01
"""Å; and at this one where the first gives no description that gives back the crystal."""
SUPERSTRUCTURE = 0.02
"""Å; a larger cell with atoms this far off from the smaller one is another crystal (in the mean over atoms). Of 19,407
crystals pymatgen takes four for others than their smaller cells at 0.1 Å: they are off by 0.0215 to 0.045 Å."""
_TOLERANCE = 2e-4
"""Of fractional coordinates that must agree after symmetrisation."""
_VOLUME_TOLERANCE = 0.02
"""Of the volume per atom, relative: symmetrisation may strain the cell by no more."""


class EncodingError(ValueError):
    """A crystal without a description by orbits, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Matcher:
    """The table of one group as one linear map, from a point to how far its images are from each position."""

    matrix: Float[np.ndarray, "row 3"]
    """Rows by operation, position and axis."""
    offset: Float[np.ndarray, "operation position 3"]
    num_free: Int[np.ndarray, " position"]
    num_images: Int[np.ndarray, " position"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Standardised:
    """A crystal as moyopy standardises it."""

    number: int
    conventional: Float[np.ndarray, "3 3"]
    """Rows, Å."""
    points: Float[np.ndarray, "orbit 3"]
    """One symmetrised point of each orbit, in the conventional cell."""
    element: Int[np.ndarray, " orbit"]
    size: Int[np.ndarray, " orbit"]
    """Points in the primitive cell."""
    orbit: Int[np.ndarray, " atom"]
    """Orbit of each atom of the crystal that came in."""
    moved: Float[np.ndarray, "atom 3"]
    """The atoms that came in, not symmetrised, in the conventional cell."""


def encode(crystal: CrystalArrays, *, symprec: float = SYMPREC) -> Orbits:
    """The canonical description of a crystal at one tolerance.

    Args:
        crystal: any cell of it.
        symprec: Å.

    Raises:
        EncodingError: when moyopy finds no symmetry, or the orbits do not give back the crystal.
    """
    return _encode(crystal, symprec)[0]


def encode_with_fallback(
    crystal: CrystalArrays, *, symprec: float = SYMPREC, fallback: float | None = FALLBACK_SYMPREC
) -> Orbits:
    """As `encode`, at a second tolerance where the first one gives nothing or another crystal.

    It gives another one where a superstructure, by whose distortions atoms are more than `SUPERSTRUCTURE` off, would
    lose its larger cell.

    Raises:
        EncodingError: when neither gives a description; the reason is that of the second one.
    """
    first = None
    try:
        first, displacement = _encode(crystal, symprec)
    except EncodingError:
        if fallback is None:
            raise
    else:
        is_smaller = _num_atoms(first) < crystal.num_atoms
        if fallback is None or not is_smaller or displacement <= SUPERSTRUCTURE:
            return first
    try:
        second, _ = _encode(crystal, fallback)
    except EncodingError:
        if first is None:
            raise
        return first
    return second if first is None or _num_atoms(second) > _num_atoms(first) else first


def _encode(crystal: CrystalArrays, symprec: float) -> tuple[Orbits, float]:
    """As `encode`, and the root mean square of the atoms' displacements by symmetrisation, in Å."""
    found = _standardise(crystal, symprec)
    position, coords = _match(found)
    displacement = _displacement(found, position, coords)
    if not displacement <= symprec:
        raise EncodingError(
            f"symmetrisation in space group {found.number} moves atoms by {displacement:.3f} Å, more than {symprec} Å"
        )
    num_atoms = int(wyckoff_table().multiplicity[position].sum())
    volume = abs(np.linalg.det(crystal.lattice)) / crystal.num_atoms
    strain = abs(np.linalg.det(found.conventional)) / num_atoms / volume - 1
    if not abs(strain) < _VOLUME_TOLERANCE:
        raise EncodingError(f"the symmetrised cell differs in volume by {strain:.1%}")
    orbits = Orbits(
        space_group=found.number,
        cell=cell_components(found.conventional, found.number, num_atoms),
        position=position,
        element=found.element,
        coords=coords,
    )
    return canonical(orbits), displacement


def _num_atoms(orbits: Orbits) -> int:
    """Atoms in the primitive cell."""
    return int(wyckoff_table().num_images[orbits.position].sum())


def encode_p1(crystal: CrystalArrays) -> Orbits:
    """A crystal without symmetry: every atom an orbit of group 1, in a Niggli cell with as many atoms.

    Raises:
        EncodingError: for a cell that cannot be reduced.
    """
    try:
        change = niggli_transformations(crystal.lattice[None])[0]
    except ValueError as error:
        raise EncodingError(str(error)) from error
    coords = crystal.frac_coords @ np.linalg.inv(change)
    return canonical(
        Orbits(
            space_group=1,
            cell=cell_components(change @ crystal.lattice, 1, crystal.num_atoms),
            position=np.full(crystal.num_atoms, wyckoff_table().first[1]),
            element=crystal.atomic_numbers,
            coords=coords - np.floor(coords),
        )
    )


@cache
def _moyopy() -> ModuleType:
    """moyopy, silent about operations in the basis of the cell that came in, which nobody here reads."""
    import logging

    import moyopy

    logging.getLogger("moyo").setLevel(logging.ERROR)
    return moyopy


def _standardise(crystal: CrystalArrays, symprec: float) -> _Standardised:
    """Space group, symmetrised cell and orbits.

    Raises:
        EncodingError: when moyopy finds none.
    """
    moyopy = _moyopy()
    cell = moyopy.Cell(
        crystal.lattice.tolist(), crystal.frac_coords.tolist(), crystal.atomic_numbers.tolist()
    )
    try:
        dataset = moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.standard())
    except BaseException as error:  # its errors, and Rust's panics, which are no `Exception`
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise EncodingError(f"moyopy finds no symmetry at {symprec} Å: {error}") from None
    primitive, conventional = dataset.prim_std_cell, np.array(dataset.std_cell.basis)
    points = np.array(primitive.positions) @ np.array(primitive.basis) @ np.linalg.inv(conventional)
    to_primitive = np.array(dataset.mapping_std_prim)
    _, first, orbit = np.unique(np.array(dataset.orbits), return_index=True, return_inverse=True)
    orbit_of_point = np.full(len(points), -1)
    orbit_of_point[to_primitive] = orbit
    moved = np.linalg.solve(
        np.array(dataset.std_linear), (crystal.frac_coords - dataset.std_origin_shift).T
    ).T
    return _Standardised(
        number=dataset.number,
        conventional=conventional,
        points=points[to_primitive[first]],
        element=crystal.atomic_numbers[first],
        size=np.bincount(orbit_of_point, minlength=len(first)),
        orbit=orbit,
        moved=moved,
    )


@cache
def _matcher(number: int) -> _Matcher:
    """The map of one group: with S u the free coordinates that stand alone in a point, the rest x - M S x - c."""
    table, group = wyckoff_table(), space_group(number)
    span = slice(int(table.first[number]), int(table.first[number] + table.count[number]))
    selects = np.zeros((int(table.count[number]), 3, 3))
    for index, axes in enumerate(table.free_axes[span]):
        for column, axis in enumerate(axes[axes >= 0]):
            selects[index, column, axis] = 1
    rest = np.eye(3) - table.matrix[span] @ selects
    matrix = np.einsum("pij,ojk->opik", rest, group.rotations)
    offset = np.einsum("pij,oj->opi", rest, group.translations) - table.offset[span]
    return _Matcher(
        matrix=matrix.reshape(-1, 3),
        offset=offset,
        num_free=table.num_free[span],
        num_images=table.num_images[span],
    )


def _match(
    found: _Standardised,
) -> tuple[Int[np.ndarray, " orbit"], Float[np.ndarray, "orbit 3"]]:
    """Position and free coordinates of each orbit.

    Raises:
        EncodingError: for an orbit that fits no position of its size.
    """
    table, group, matcher = wyckoff_table(), space_group(found.number), _matcher(found.number)
    rest = (found.points @ matcher.matrix.T).reshape(-1, *matcher.offset.shape) + matcher.offset
    fits: Bool[np.ndarray, "orbit operation position"]
    fits = np.abs(rest - np.round(rest)).max(axis=-1) < _TOLERANCE
    fits &= matcher.num_images == found.size[:, None, None]
    freedom = np.where(fits.any(axis=1), matcher.num_free, 4)
    position = freedom.argmin(axis=1)
    orbits = np.arange(len(position))
    unmatched = freedom[orbits, position] == 4
    if unmatched.any():
        place = int(unmatched.argmax())
        raise EncodingError(
            f"no Wyckoff position of space group {found.number} fits an orbit of {found.size[place]} atoms"
        )
    operation = fits[orbits, :, position].argmax(axis=1)
    position = position + int(table.first[found.number])
    points = np.einsum("oij,oj->oi", group.rotations[operation], found.points) + group.translations[operation]
    axes = table.free_axes[position]
    coords = np.where(axes >= 0, np.take_along_axis(points, np.maximum(axes, 0), axis=1), 0.0)
    return position, coords - np.floor(coords)


def _displacement(
    found: _Standardised, position: Int[np.ndarray, " orbit"], coords: Float[np.ndarray, "orbit 3"]
) -> float:
    """Root mean square of the distances of all atoms from the nearest place of their orbits, in Å.

    Raises:
        EncodingError: when places have not as many atoms as others.
    """
    table, group = wyckoff_table(), space_group(found.number)
    most = int(table.num_images[position].max())
    images = np.einsum("ompq,oq->omp", table.image_matrix[position, :most], coords)
    images += table.image_offset[position, :most]
    gaps = (found.moved[:, None] - images[found.orbit]) @ np.linalg.inv(group.primitive)
    gaps -= np.round(gaps)
    squares = ((gaps @ (group.primitive @ found.conventional)) ** 2).sum(axis=-1)
    squares[np.arange(most) >= found.size[found.orbit, None]] = np.inf
    nearest = squares.argmin(axis=1)
    count = np.bincount(found.orbit * most + nearest)
    if (count[count > 0] * found.size.sum() != len(found.moved)).any():
        raise EncodingError(f"atoms do not fall on the places of space group {found.number} one by one")
    return float(np.sqrt(squares[np.arange(len(nearest)), nearest].mean()))
