"""Sampled crystals as text: CIF, extxyz, JSON lines.

`cif_text` writes the layout of pymatgen's `CifWriter` about twenty times faster, and `reads_back` makes sure of every
text before it becomes a file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.cif import parse_p1
from latentite.elements import SYMBOLS

_MAX_EDGE = 1000.0
"""Å; in longer cells two atoms that are well apart can be too close in fractional coordinates for pymatgen."""
_MIN_FRACTION = 5e-4
"""Fractional; pymatgen takes sites within 1e-4 for one, and moves those near 1/3 and 2/3 by up to 7e-5."""
_NEXT, _LAST = [1, 2, 0], [2, 0, 1]
"""The two vectors that enclose each angle: alpha lies between b and c."""
_COORDINATE_ERROR = 1e-4
"""Fractional; more than the digits of the file and the moves to 1/3 and 2/3 can make."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One usable crystal of a run, with what the files say of it."""

    index: int
    """Place in the whole run."""
    attempt: int
    """0 when the first attempt was usable."""
    seed: int
    """Of this crystal and attempt."""
    formula: str
    """Reduced."""
    ask: str
    """Label of what was asked; empty when nothing in particular."""
    conditions: str
    """The conditions that it was asked for, as a user would type them."""
    arrays: CrystalArrays
    cif: str
    fixed_deviation: float | None = None
    """Å; with fixed atoms how far the worst of them lies from its place."""


def cif_text(crystal: CrystalArrays, formula: str) -> str:
    """A P1 CIF in the layout of pymatgen's `CifWriter`, with eight decimals.

    Args:
        crystal: its coordinates are written wrapped into [0, 1). The orientation of its cell is not part of a CIF,
            and of a left-handed one the mirror image would be read: `reads_back` says so.
        formula: reduced.
    """
    lengths, angles = _cell(crystal.lattice)
    numbers = crystal.atomic_numbers.tolist()
    counts = Counter(SYMBOLS[z - 1] for z in sorted(numbers))
    units = reduce(math.gcd, counts.values())
    total = " ".join(f"{symbol}{count}" for symbol, count in counts.items())
    values = [
        value
        for place, (z, xyz) in enumerate(zip(numbers, wrapped(crystal.frac_coords).tolist(), strict=True))
        for value in (SYMBOLS[z - 1], f"{SYMBOLS[z - 1]}{place}", *xyz)
    ]
    return (
        f"data_{formula}\n"
        "_symmetry_space_group_name_H-M   'P 1'\n"
        "_cell_length_a   %.8f\n_cell_length_b   %.8f\n_cell_length_c   %.8f\n"
        "_cell_angle_alpha   %.8f\n_cell_angle_beta   %.8f\n_cell_angle_gamma   %.8f\n"
        "_symmetry_Int_Tables_number   1\n"
        f"_chemical_formula_structural   {formula}\n_chemical_formula_sum   '{total}'\n"
        "_cell_volume   %.8f\n"
        f"_cell_formula_units_Z   {units}\n"
        "loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
        "loop_\n _atom_site_type_symbol\n _atom_site_label\n _atom_site_symmetry_multiplicity\n"
        " _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n _atom_site_occupancy\n"
    ) % (*lengths, *angles, abs(np.linalg.det(crystal.lattice))) + (
        "  %s  %s  1  %.8f  %.8f  %.8f  1\n" * len(numbers) % tuple(values)
    )


def reads_back(text: str, crystal: CrystalArrays) -> str | None:
    """Reason for which a CIF would not come back as the crystal that it was written from; None when it does.

    Reads it with the package's own parser, and rules out what pymatgen would take for something else.
    """
    read = parse_p1(text)
    if read is None:
        return "the CIF is not in the layout that can be read back"
    coords, cell, lattice = read.frac_coords, read.lattice, crystal.lattice
    if not np.array_equal(read.atomic_numbers, crystal.atomic_numbers):
        return "the CIF has other elements than the crystal"
    difference = coords - crystal.frac_coords
    if not np.abs(difference - np.round(difference)).max() <= _COORDINATE_ERROR:
        return "coordinates in the CIF differ from the crystal's"
    if np.linalg.det(lattice) < 0.0:
        return "the cell is left-handed: the CIF, which has lengths and angles only, holds its mirror image"
    metric = lattice @ lattice.T
    if not np.abs(cell @ cell.T - metric).max() <= 1e-5 * metric.max():
        return (
            "the cell in the CIF differs from the crystal's: its angles are too close to those of a flat one"
        )
    longest = math.sqrt(metric.diagonal().max())
    if longest > _MAX_EDGE and _smallest_fraction(coords) < _MIN_FRACTION:
        return f"atoms of a cell {longest:.0f} Å long are too close in fractional coordinates for CIF readers"
    return None


def extxyz_frame(
    arrays: CrystalArrays, info: Iterable[tuple[str, str | int | float]] = (), *, is_wrapped: bool = True
) -> str:
    """A frame of an extended XYZ file: cell, elements, Cartesian coordinates (Å), and `info` in its comment."""
    coords, lattice = arrays.frac_coords, arrays.lattice
    positions = ((wrapped(coords) if is_wrapped else coords) @ lattice).tolist()
    cell = " ".join(f"{value:.8f}" for value in lattice.ravel().tolist())
    labels = "".join(f" {name}={_quoted(value)}" for name, value in info)
    numbers = arrays.atomic_numbers.tolist()
    values = [value for z, xyz in zip(numbers, positions, strict=True) for value in (SYMBOLS[z - 1], *xyz)]
    return (
        f'{len(numbers)}\nLattice="{cell}" Properties=species:S:1:pos:R:3 pbc="T T T"{labels}\n'
        + "%-2s %.8f %.8f %.8f\n" * len(numbers) % tuple(values)
    )


def sample_frame(sample: Sample) -> str:
    """A sample's frame in `structures.extxyz`."""
    return extxyz_frame(sample.arrays, _labels(sample).items())


def json_line(sample: Sample) -> str:
    """A sample's line in `structures.jsonl`: its labels, and `structure` as pymatgen's `Structure.as_dict`."""
    crystal = sample.arrays
    places = np.round(wrapped(crystal.frac_coords), 8).tolist()
    sites = [
        {"species": [{"element": SYMBOLS[z - 1], "occu": 1}], "abc": xyz}
        for z, xyz in zip(crystal.atomic_numbers.tolist(), places, strict=True)
    ]
    structure = {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "lattice": {"matrix": np.round(crystal.lattice, 8).tolist()},
        "sites": sites,
    }
    return json.dumps({**_labels(sample), "structure": structure}, ensure_ascii=False) + "\n"


def wrapped(frac_coords: np.ndarray) -> np.ndarray:
    """In [0, 1) with eight decimals: what would be written as 1.00000000 becomes 0."""
    coords = np.round(frac_coords % 1.0, 8)
    coords[coords >= 1.0] = 0.0
    return coords


def file_stem(index: int, total: int) -> str:
    """Name of a crystal's own files: its index with leading zeros, so that names sort as numbers."""
    return f"{index:0{max(6, len(str(total - 1)))}d}"


def _labels(sample: Sample) -> dict[str, str | int | float]:
    labels: dict[str, str | int | float] = {
        "id": sample.index,
        "index": sample.index,
        "formula": sample.formula,
        "ask": sample.ask,
        "conditions": sample.conditions,
        "attempts": sample.attempt + 1,
    }
    if sample.fixed_deviation is not None:
        labels["fixed_deviation"] = round(sample.fixed_deviation, 6)
    return {name: value for name, value in labels.items() if value != ""}


def _quoted(value: str | int | float) -> str:
    return (
        '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else str(value)
    )


def _cell(lattice: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    """Lengths (Å) and angles (degrees)."""
    lengths = np.linalg.norm(lattice, axis=1)
    cosines = (lattice[_NEXT] * lattice[_LAST]).sum(axis=1) / (lengths[_NEXT] * lengths[_LAST])
    return lengths.tolist(), np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).tolist()


def _smallest_fraction(coords: np.ndarray) -> float:
    """The smallest distance between two atoms in fractional coordinates, largest component."""
    difference = coords[:, None] - coords[None]
    distance = np.abs(difference - np.round(difference)).max(axis=-1)
    np.fill_diagonal(distance, 1.0)
    return float(distance.min())
