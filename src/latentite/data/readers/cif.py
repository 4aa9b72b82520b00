"""CIF text to arrays: a strict fast path for the P1 files that pymatgen writes.

The datasets of this field are CSVs of P1 CIFs, and pymatgen reads about 600 of them per second. `parse_p1`
reads only the exact layout of `CifWriter` without symmetry; at anything else (another header or loop,
symmetry, occupancy other than 1, charges, isotopes, uncertainties in brackets, several blocks, a formula that its
atoms do not have) it returns None, and `cif_crystal.py` reads the file or says why not. Tests hold the two, and
pymatgen, equal on real rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.elements import ATOMIC_NUMBER

_NUMBER = r" +(\d+\.?\d*)\n"
_HEADER = re.compile(
    r"\s*(?:# generated using pymatgen\n)?data_[A-Za-z0-9().]+\n"
    r"_symmetry_space_group_name_H-M +'P 1'\n"
    rf"_cell_length_a{_NUMBER}_cell_length_b{_NUMBER}_cell_length_c{_NUMBER}"
    rf"_cell_angle_alpha{_NUMBER}_cell_angle_beta{_NUMBER}_cell_angle_gamma{_NUMBER}"
    r"_symmetry_Int_Tables_number +1\n"
    r"_chemical_formula_structural +[A-Za-z0-9().]+\n"
    r"_chemical_formula_sum +'?([A-Za-z0-9 .]+)'?\n"
    r"_cell_volume +[0-9.]+\n"
    r"_cell_formula_units_Z +(\d+)\n"
    r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n +1 +'x, y, z'\n"
    r"loop_\n _atom_site_type_symbol\n _atom_site_label\n _atom_site_symmetry_multiplicity\n"
    r" _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n _atom_site_occupancy\n"
)
_AMOUNTS = re.compile(r"([A-Z][a-z]?)(\d+)(?= |\Z)").findall
_UNUSUAL = re.compile(r"[^A-Za-z0-9.\- \n]")
_COLUMNS = 7  # symbol, label, multiplicity, x, y, z, occupancy
_IDEAL_FRACTIONS = (1 / 3, 2 / 3)
_IDEAL_TOLERANCE = 1e-4  # CifParser's default frac_tolerance, relative


def parse_p1(text: str) -> CrystalArrays | None:
    """Arrays of a P1 CIF in the exact layout of pymatgen's `CifWriter`, or None for any other text.

    Atoms stand in the order of the file; coordinates near 1/3 and 2/3 are made exact as `CifParser` does; the
    cell has the orientation of `Lattice.from_parameters`. What `CifParser` would refuse later is
    kept: atoms that coincide, coordinates that are not finite, flat cells; the caller's checks name them.
    """
    header = _HEADER.match(text)
    if header is None:
        return None
    body = text[header.end() :]
    tokens = body.split()
    count, remainder = divmod(len(tokens), _COLUMNS)
    if remainder or count == 0 or _UNUSUAL.search(body) or body.rstrip().count("\n") != count - 1:
        return None
    ones = ["1"] * count
    if tokens[2::_COLUMNS] != ones or tokens[6::_COLUMNS] != ones:
        return None
    *cell, formula, units = header.groups()
    symbols = tokens[0::_COLUMNS]
    amounts = {symbol: int(amount) for symbol, amount in _AMOUNTS(formula)}
    if amounts != {symbol: symbols.count(symbol) for symbol in set(symbols)}:
        return None
    if not is_content_of_cell(amounts.values(), int(units)):
        return None
    try:
        numbers = [ATOMIC_NUMBER[symbol] for symbol in symbols]
        columns = [list(map(float, tokens[axis::_COLUMNS])) for axis in (3, 4, 5)]
    except (KeyError, ValueError):
        return None
    coords = np.array(columns).T.copy()
    # Few crystals have such coordinates; all of these are written with these digits, or with a negative exponent.
    if "333" in body or "666" in body or "e-" in body or "E-" in body:
        make_ideal(coords)
    a, b, c, alpha, beta, gamma = map(float, cell)
    lattice = lattice_matrix((a, b, c), (alpha, beta, gamma))
    return CrystalArrays(np.array(numbers, dtype=np.int64), coords, lattice)


def make_ideal(coords: np.ndarray) -> None:
    """Replace, in place, 0.3333 and the like by the exact third, with `CifParser`'s own test and order."""
    for ideal in _IDEAL_FRACTIONS:
        close = np.abs(coords / ideal - 1.0) <= _IDEAL_TOLERANCE
        if close.any():
            coords[close] = ideal


def lattice_matrix(lengths: tuple[float, float, float], angles: tuple[float, float, float]) -> np.ndarray:
    """Row vectors (Å) of a cell from lengths (Å) and angles (degrees): c along z, a in the xz plane.

    Angles that no cell can have are clamped and give a flat cell, which the caller's volume check refuses;
    scalar arithmetic, because one call serves one row and arrays of three would cost ten times as much.
    """
    a, b, c = lengths
    alpha, beta, gamma = map(math.radians, angles)
    sine_product = math.sin(alpha) * math.sin(beta)
    if sine_product == 0.0:
        return np.zeros((3, 3))
    cos_gamma_star = (math.cos(alpha) * math.cos(beta) - math.cos(gamma)) / sine_product
    cos_gamma_star = max(-1.0, min(1.0, cos_gamma_star))
    sin_gamma_star = math.sqrt(1.0 - cos_gamma_star * cos_gamma_star)
    return np.array(
        (
            (a * math.sin(beta), 0.0, a * math.cos(beta)),
            (
                -b * math.sin(alpha) * cos_gamma_star,
                b * math.sin(alpha) * sin_gamma_star,
                b * math.cos(alpha),
            ),
            (0.0, 0.0, c),
        )
    )


# ------------------------------------------------------------------------------ a file's own formula


_RELATIVE = 0.02
"""Relative tolerance of amounts against those of the formula, which may be rounded (`Al0.67 O`)."""
_AMOUNT = r"(\d+\.?\d*|\.\d+)?(?:\(\d+\))?"
_ELEMENTS = re.compile(rf"([A-Z][a-z]?){_AMOUNT}")
_CAPITALS = re.compile(rf"([A-Z]{{1,2}}){_AMOUNT}\Z")
_CHARGE = re.compile(r"\s\d*[+-]\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Formula:
    """A file's own formula, and the number of its units in the cell."""

    text: str
    """`_chemical_formula_sum`."""
    units: float | None
    """`_cell_formula_units_Z`; None or 0 where it is not given."""
    is_whole_cell: bool
    """True where the formula may be that of the whole cell beside a Z, as pymatgen writes it."""

    @property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements that it can mean."""
        return frozenset(symbol for reading in readings(self.text) for symbol in reading)

    def agrees(self, counts: Mapping[str, int]) -> bool:
        """True where a cell of so many atoms per element is what the formula and Z say."""
        return any(self._is(counts, reading) for reading in readings(self.text))

    def _is(self, counts: Mapping[str, int], formula: Mapping[str, float]) -> bool:
        if counts.keys() != formula.keys():
            return False
        units = sum(counts.values()) / sum(formula.values())
        if any(abs(count - units * formula[symbol]) > _RELATIVE * count for symbol, count in counts.items()):
            return False
        if not self.units or abs(units - self.units) <= _RELATIVE * self.units:
            return True
        if not self.is_whole_cell or abs(units - 1.0) > _RELATIVE:
            return False
        return is_content_of_cell([round(amount) for amount in formula.values()], int(self.units))

    def disagreement(self, counts: Mapping[str, int]) -> str:
        """Both formulas in one sentence."""
        units = f" with {self.units:g} formula units in the cell" if self.units else ""
        sites = " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts)) or "nothing"
        lacking = sorted(self.elements - counts.keys())
        hint = f"; {', '.join(lacking)} may not have been located" if lacking else ""
        return f"the sites make {sites}, but the file's own formula is {self.text!r}{units}{hint}"


def is_content_of_cell(amounts: Iterable[int], units: int) -> bool:
    """True where a formula with these amounts can be that of a whole cell beside so many units, as pymatgen writes it.

    Its units are those of the reduced formula, for O2, Li2O2 and the like half of that, rounded down.
    """
    common = math.gcd(*amounts)
    return not units or common % units == 0 or common // 2 == units


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Mapping[str, float], ...]:
    """Amounts by symbol that a formula can mean: one reading, or two where it is written in capitals (`CO1`).

    Raises:
        ValueError: for what is no formula.
    """
    stripped = _CHARGE.sub("", text.strip())
    meanings: list[dict[str, float]] = []
    if "".join(match.group() for match in _ELEMENTS.finditer(stripped)) == re.sub(r"\s", "", stripped):
        meanings.append(_add_up(match.groups() for match in _ELEMENTS.finditer(stripped)))
    if stripped == stripped.upper():
        parts = [_CAPITALS.match(part) for part in stripped.split()]
        if all(parts):
            meanings.append(_add_up((part[1].title(), part[2]) for part in parts if part))
    meanings = [reading for reading in meanings if reading]
    if not meanings:
        raise ValueError(
            f"the file's own formula {text!r} is not understood; write it as in 'Fe2 O3' or leave it out"
        )
    return tuple(meanings)


def _add_up(pairs: Iterable[Sequence[str]]) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for symbol, amount in pairs:
        amounts[symbol] = amounts.get(symbol, 0.0) + (float(amount) if amount else 1.0)
    return {symbol: amount for symbol, amount in amounts.items() if amount}
