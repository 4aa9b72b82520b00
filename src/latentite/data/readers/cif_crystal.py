"""The crystal of a CIF: its sites and symmetry understood, expanded, and held against the file's own formula.

Everything that `cif.parse_p1` leaves comes here. What is not understood is refused with its text: a site that names no
element, symmetry that names no space group, a formula that its atoms do not have. Where the symmetry has several
readings (two origins), the operations decide, else formula and Z, else atoms on top of each other or a density that is
half as much again as the other's; where none of these does, the file is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import too_close
from latentite.data.readers.cif import Formula, lattice_matrix, make_ideal
from latentite.data.readers.cif_symmetry import Symmetry, read_symmetry
from latentite.data.readers.cif_text import MISSING, Block, number, read_blocks
from latentite.data.readers.space_groups import Operations
from latentite.elements import ATOMIC_NUMBER, SYMBOLS

SAME_PLACE = 0.1
"""Å; images of one site nearer than this are one atom on a special position, given with few digits."""
_OVERLAP = 0.7
"""Å; atoms nearer than this are on top of each other: the hydrogen molecule has 0.74."""
_DENSITY_RATIO = 1.5
_ISOTOPES = {"D", "T"}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\u25a1"
_GROUPS = re.compile(r"(?:RE|TM)\Z|H[23]O")
"""Rare earths, transition metals and water, as labels in capitals: rhenium, thulium and hydrogen are written so too."""
_VACANCIES = {"va", "vac", "vacancy", "vacant", "x", "xx", "du", "dum", "\u25a1"}
_LENGTHS = tuple(f"_cell_length_{axis}" for axis in "abc")
_ANGLES = tuple(f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma"))
_MULTIPLICITIES = ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity")
_COORDINATES = tuple(f"_atom_site_fract_{axis}" for axis in "xyz")


def read_crystal(text: str) -> CrystalArrays:
    """The one crystal of a CIF, in the cell of the file.

    Raises:
        ValueError: with the reason, quoting what was not understood.
    """
    try:
        blocks = [block for block in read_blocks(text) if block.has_atoms]
    except ValueError as error:
        raise ValueError(f"unreadable CIF: {error}") from error
    if not blocks:
        raise ValueError("unreadable CIF: no block has atoms; it is cut off, or describes no crystal")
    if len(blocks) > 1:
        names = ", ".join(block.name for block in blocks[:4])
        raise ValueError(
            f"CIF holds {len(blocks)} blocks with atoms ({names}); give one structure per file or row"
        )
    block = blocks[0]
    lattice = _read_lattice(block)
    formula = _read_formula(block)
    sites = _read_sites(block, formula)
    symmetry = read_symmetry(block, lattice)
    readings = [_expand(sites, lattice, operations) for operations in symmetry.readings]
    crystal = _choose(readings, sites, formula, symmetry)
    _refuse_attached_hydrogen(block)
    return crystal


# ------------------------------------------------------------------------------------------ cell and formula


def _read_lattice(block: Block) -> np.ndarray:
    values = [_number_of(block, tag) for tag in (*_LENGTHS, *_ANGLES)]
    lengths, angles = values[:3], values[3:]
    if min(lengths) <= 0.0 or not all(0.0 < angle < 180.0 for angle in angles):
        raise ValueError(f"absurd cell: lengths {lengths} Å and angles {angles} degrees")
    return lattice_matrix((lengths[0], lengths[1], lengths[2]), (angles[0], angles[1], angles[2]))


def _number_of(block: Block, tag: str) -> float:
    text = block.text(tag)
    if text is None:
        raise ValueError(f"unreadable CIF: {tag} is missing")
    try:
        return number(text)
    except ValueError as error:
        raise ValueError(f"unreadable CIF: {tag} {error}") from error


def _read_formula(block: Block) -> Formula | None:
    text = block.text("_chemical_formula_sum")
    if text is None:
        return None
    has_units = block.text("_cell_formula_units_z") is not None
    return Formula(
        text=text,
        units=_number_of(block, "_cell_formula_units_z") if has_units else None,
        is_whole_cell=block.text("_chemical_formula_structural") is not None,
    )


# ------------------------------------------------------------------------------------------ sites


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sites:
    """The sites that a file lists."""

    numbers: np.ndarray
    """Atomic numbers [site]."""
    coords: np.ndarray
    """Fractional coordinates [site 3]."""
    multiplicities: np.ndarray
    """[site]; how many atoms each makes by the file's own word, NaN where it gives none."""


def _read_sites(block: Block, formula: Formula | None) -> _Sites:
    missing = [tag for tag in _COORDINATES if not block.column(tag)]
    if missing:
        raise ValueError(f"unreadable CIF: {missing[0]} is missing; the sites need fractional coordinates")
    count = len(block.column(_COORDINATES[0]))
    columns = [_site_column(block, tag, count) for tag in _COORDINATES]
    labels, types, occupancies = (
        [text.strip() for text in _site_column(block, f"_atom_site_{name}", count)]
        for name in ("label", "type_symbol", "occupancy")
    )
    _refuse_disorder(block)
    coords = np.zeros((count, 3))
    numbers = np.zeros(count, dtype=np.int64)
    for site in range(count):
        name = types[site] if types[site] not in MISSING else labels[site]
        label = labels[site] if labels[site] not in MISSING else name
        _refuse_occupancy(label, name, occupancies[site])
        numbers[site] = ATOMIC_NUMBER[_element(name, label, formula)]
        try:
            coords[site] = [number(column[site]) for column in columns]
        except ValueError as error:
            raise ValueError(f"unreadable CIF: a coordinate of site {label} {error}") from error
    if not np.isfinite(coords).all():
        raise ValueError("coordinates are not finite numbers")
    make_ideal(coords)
    return _Sites(numbers=numbers, coords=coords, multiplicities=_read_multiplicities(block, count))


def _read_multiplicities(block: Block, count: int) -> np.ndarray:
    tag = next((tag for tag in _MULTIPLICITIES if block.column(tag)), _MULTIPLICITIES[0])
    texts = _site_column(block, tag, count)
    try:
        return np.array([np.nan if text in MISSING else number(text) for text in texts])
    except ValueError as error:
        raise ValueError(f"unreadable CIF: {tag} {error}") from error


def _site_column(block: Block, tag: str, count: int) -> Sequence[str]:
    column = block.column(tag) or ["?"] * count
    if len(column) != count:
        raise ValueError(f"unreadable CIF: {tag} has {len(column)} values for {count} sites")
    return column


def _refuse_disorder(block: Block) -> None:
    groups = sorted(set(block.column("_atom_site_disorder_group")) - MISSING - {"0"})
    if len(groups) > 1:
        raise ValueError(
            f"disordered: its sites are alternatives ({', '.join(groups)} in _atom_site_disorder_group)"
        )
    if "dum" in {text.lower() for text in block.column("_atom_site_calc_flag")}:
        raise ValueError("a site is a dummy (_atom_site_calc_flag dum), not an atom; leave it out")


def _refuse_attached_hydrogen(block: Block) -> None:
    counts = [text for text in block.column("_atom_site_attached_hydrogens") if text not in MISSING | {"0"}]
    if counts:
        raise ValueError(
            f"{len(counts)} sites have hydrogen attached without coordinates (_atom_site_attached_hydrogens)"
        )


def _refuse_occupancy(label: str, name: str, text: str) -> None:
    """Refuse what is not one whole atom."""
    try:
        occupancy = 1.0 if text in MISSING else number(text)
    except ValueError as error:
        raise ValueError(f"unreadable CIF: the occupancy of site {label} {error}") from error
    if occupancy == 0.0:
        raise ValueError(f"site {label} has occupancy 0: no atom is there; leave it out")
    if abs(occupancy - 1.0) > 1e-6:
        raise ValueError(f"partial occupancy: {name}:{occupancy:g} on site {label}")


_SHARED_SITE = re.compile(r"[,/|&\s]|[+.]\d*[A-Za-z]")
"""The rest after the first symbol, where a name holds several: `Fe,Ni`, `Al/Si`, `Fe0.5Ni0.5`."""


def _element(name: str, label: str, formula: Formula | None) -> str:
    """The element that a type symbol (`Fe3+`) or label (`Fe1A`) names.

    The letters at its beginning must be an element. Where they hold more (`OW`, `SiT`, as minerals are labelled), or
    are capitals that can be one element or two (`CO`), the formula of the file must know one reading only.
    """
    letters = name[: len(name) - len(name.lstrip(_LETTERS))]
    rest = name[len(letters) :]
    if letters.lower() in _VACANCIES:
        raise ValueError(f"site {label} is a vacancy ({name}), not an atom; leave it out")
    if letters in _ISOTOPES:
        raise ValueError(f"isotope {letters}: the element classes know no isotopes; write it as H")
    whole = letters.title()
    is_one_or_two = len(letters) == 2 and letters.isupper() and set(letters) <= ATOMIC_NUMBER.keys()
    is_group = _GROUPS.match(letters if len(letters) > 1 else name) is not None
    is_shared = _SHARED_SITE.search(rest) or (name != label and any(mark.isalpha() for mark in rest))
    if whole in ATOMIC_NUMBER and not (is_one_or_two or is_group or is_shared):
        return whole
    readings = [text for text in dict.fromkeys([whole, letters[:2], letters[:1]]) if text in ATOMIC_NUMBER]
    known = [text for text in readings if formula is not None and text in formula.elements]
    if len(known) == 1 and not is_shared:
        return known[0]
    raise ValueError(
        f"site {label} is {name!r}, which is no element or more than one"
        + (f" of the file's own formula {formula.text!r}" if formula else "")
        + "; give each site the symbol of one element (_atom_site_type_symbol)"
    )


# ------------------------------------------------------------------------------------------ symmetry


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """One crystal that a file can mean."""

    arrays: CrystalArrays
    sizes: np.ndarray
    """[site]; how many atoms each site makes."""


def _expand(sites: _Sites, lattice: np.ndarray, operations: Operations) -> _Reading:
    """All atoms of the cell, site by site.

    Raises:
        ValueError: where the images of a site neither coincide nor stay apart.
    """
    if operations.is_identity:
        return _Reading(
            arrays=CrystalArrays(sites.numbers, sites.coords, lattice),
            sizes=np.ones(len(sites.numbers), dtype=int),
        )
    images = np.einsum("oij,sj->soi", operations.rotations, sites.coords) + operations.translations
    orbits = [_orbit(of_site, site, lattice) for of_site, site in zip(images, sites.coords, strict=True)]
    sizes = np.array([len(orbit) for orbit in orbits])
    crystal = CrystalArrays(np.repeat(sites.numbers, sizes), np.concatenate(orbits), lattice)
    return _Reading(arrays=crystal, sizes=sizes)


def _orbit(images: np.ndarray, site: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """The different positions [position 3] among the images [operation 3] of one site.

    Images that coincide, but for the digits that the file left out, make one position: their mean.
    """
    offsets = images[:, None] - images[None]
    offsets -= np.rint(offsets)
    is_same = np.linalg.norm(offsets @ lattice, axis=-1) < SAME_PLACE
    size = is_same[0].sum()
    first = is_same.argmax(axis=1)
    if not (is_same.sum(1) == size).all() or not (is_same == is_same[first]).all():
        raise ValueError(
            f"the images of the site at {np.round(site, 4).tolist()} neither coincide nor stay {SAME_PLACE} Å apart; "
            "give its coordinates with more digits"
        )
    chosen = np.unique(first)
    return (images[chosen] - (offsets[chosen] * is_same[chosen, :, None]).sum(1) / size) % 1.0


def _choose(
    readings: list[_Reading], sites: _Sites, formula: Formula | None, symmetry: Symmetry
) -> CrystalArrays:
    """The one crystal that the file can mean.

    Raises:
        ValueError: when its own formula or multiplicities are not those of its atoms, or several readings remain.
    """
    if formula is not None:
        agreeing = [reading for reading in readings if formula.agrees(_counts(reading))]
        if not agreeing:
            raise ValueError(f"{formula.disagreement(_counts(readings[0]))} (symmetry: {symmetry.said})")
        readings = agreeing
    doubt = symmetry.doubt
    given = np.isfinite(sites.multiplicities)
    expected = sites.multiplicities[given]
    if agreeing := [reading for reading in readings if np.array_equal(reading.sizes[given], expected)]:
        readings = agreeing
    else:
        made = readings[0].sizes[given]
        doubt = (
            doubt
            or f"its sites make {made.tolist()} atoms each, but the file says {expected.astype(int).tolist()}"
        )
    if doubt and (formula is None or not formula.units):
        raise ValueError(
            f"{doubt}; give the right symmetry, or formula (_chemical_formula_sum) and formula units "
            "(_cell_formula_units_Z) that confirm the atoms"
        )
    if len(readings) > 1:
        readings = [reading for reading in readings if not _has_overlap(reading)]
        # All fill the same cell, so that their densities are as their numbers of atoms.
        fewest = min((reading.sizes.sum() for reading in readings), default=0)
        readings = [reading for reading in readings if reading.sizes.sum() <= _DENSITY_RATIO * fewest]
    if not readings or not _are_same(readings):
        raise ValueError(
            f"the symmetry {symmetry.said} leaves the origin or the axes open, and {len(readings) or 'no'} choices "
            "give sound crystals; name the choice, as in 'F d -3 m :2', or list the operations"
        )
    return readings[0].arrays


def _counts(reading: _Reading) -> Counter[str]:
    return Counter(SYMBOLS[number - 1] for number in reading.arrays.atomic_numbers.tolist())


def _has_overlap(reading: _Reading) -> bool:
    crystal = reading.arrays
    return too_close(crystal.frac_coords[None], crystal.lattice[None], _OVERLAP)[0] is not None


def _are_same(readings: Sequence[_Reading]) -> bool:
    """True where all readings are one crystal, as when its atoms sit where both origins put them."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.core.structure_matcher import StructureMatcher

    structures = [
        Structure(
            Lattice(crystal.lattice), [SYMBOLS[z - 1] for z in crystal.atomic_numbers], crystal.frac_coords
        )
        for crystal in (reading.arrays for reading in readings)
    ]
    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.5, scale=False)
    return all(matcher.fit(structures[0], other) for other in structures[1:])
