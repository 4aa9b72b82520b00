"""The fast CIF path against pymatgen and our own reader: equal where it answers, None elsewhere."""

from __future__ import annotations

import csv
import gzip
import os
import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.cif import parse_p1
from latentite.data.readers.cif_crystal import read_crystal
from latentite.elements import SYMBOLS

ROWS_PER_FILE = 40
"""Rows compared in each real file; LATENTITE_ALL_ROWS=1 compares all of them (minutes)."""


def cif_of(structure: Structure) -> str:
    return str(CifWriter(structure))


def rutile() -> Structure:
    coords = [
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [0.305, 0.305, 0],
        [0.695, 0.695, 0],
        [0.195, 0.805, 0.5],
        [0.805, 0.195, 0.5],
    ]
    return Structure(Lattice.tetragonal(4.59, 2.96), ["Ti", "Ti", "O", "O", "O", "O"], coords)


def read_by_pymatgen(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text).parse_structures(primitive=False)[0]


def assert_same_crystal(arrays: CrystalArrays, structure: Structure) -> None:
    """Cell parameters, species and fractional coordinates agree; the order of atoms is free."""
    numbers, coords, matrix = astuple(arrays)
    lattice = Lattice(matrix)
    np.testing.assert_allclose(lattice.parameters, structure.lattice.parameters, rtol=0, atol=1e-7)
    expected_numbers = np.array(structure.atomic_numbers)
    expected = structure.frac_coords % 1.0
    # Sort by number and wrapped coordinates; 1 - 1e-16 and 0 must be neighbours, hence the shift.
    ours = np.column_stack([numbers, np.round((coords + 1e-4) % 1.0 - 1e-4, 9)])
    theirs = np.column_stack([expected_numbers, np.round((expected + 1e-4) % 1.0 - 1e-4, 9)])
    ours, theirs = (table[np.lexsort(table.T[::-1])] for table in (ours, theirs))
    np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])
    difference = ours[:, 1:] - theirs[:, 1:]
    np.testing.assert_allclose(difference - np.round(difference), 0.0, atol=1e-9)


@pytest.fixture(scope="module")
def all_rows() -> bool:
    return bool(os.environ.get("LATENTITE_ALL_ROWS"))


def real_cifs(path: Path) -> list[str]:
    csv.field_size_limit(2**30)
    with gzip.open(path, "rt", newline="") as handle:
        return [row["cif"] for row in csv.DictReader(handle)]


@pytest.mark.parametrize(
    "name",
    [
        "mp_20_biternary/train",
        "mp_20_biternary/val",
        "mp_20_biternary/test",
        "mpts_52/train",
        "mpts_52/val",
        "mpts_52/test",
        "perov_5/test",
    ],
)
def test_fast_path_agrees_with_pymatgen_on_real_rows(shared_data: Path, name: str, all_rows: bool) -> None:
    path = shared_data / f"{name}.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    texts = real_cifs(path)
    step = 1 if all_rows else max(1, len(texts) // ROWS_PER_FILE)
    answered = [parse_p1(text) for text in texts]
    assert all(arrays is not None for arrays in answered), "a P1 CIF of a public dataset missed the fast path"
    for text, arrays in list(zip(texts, answered, strict=True))[::step]:
        assert arrays is not None
        assert_same_crystal(arrays, read_by_pymatgen(text))
        assert_same_crystal(read_crystal(text), read_by_pymatgen(text))


@given(
    seed=st.integers(0, 2**32 - 1),
    num_atoms=st.integers(1, 8),
    special=st.lists(
        st.sampled_from([0.0, 0.25, 1 / 3, 0.33333, 0.3334, 2 / 3, 0.6667, 0.99999999, -0.25]), max_size=6
    ),
)
def test_fast_path_agrees_with_pymatgen_on_random_crystals(
    seed: int, num_atoms: int, special: list[float]
) -> None:
    generator = np.random.default_rng(seed)
    lengths, angles = generator.uniform(6, 12, 3), generator.uniform(60, 110, 3)
    coords = np.column_stack(
        [np.linspace(0.01, 0.95, num_atoms), *generator.uniform(-0.5, 1.5, (2, num_atoms))]
    )
    flat = coords.reshape(-1)
    places = generator.choice(flat.size, size=min(len(special), flat.size), replace=False)
    flat[places] = special[: len(places)]
    symbols = [SYMBOLS[k] for k in generator.integers(0, 94, num_atoms)]
    text = cif_of(Structure(Lattice.from_parameters(*lengths, *angles), symbols, coords))
    try:
        expected = read_by_pymatgen(text)
    except ValueError:  # two of the special positions coincided
        assume(False)
    arrays = parse_p1(text)
    assert arrays is not None
    assert_same_crystal(arrays, expected)
    assert_same_crystal(read_crystal(text), expected)


def test_coordinates_near_thirds_become_exact_as_in_pymatgen() -> None:
    text = cif_of(rutile()).replace("0.30500000", "0.33330000").replace("0.69500000", "0.66670000")
    arrays = parse_p1(text)
    assert arrays is not None
    assert 1 / 3 in arrays.frac_coords
    assert 2 / 3 in arrays.frac_coords
    assert_same_crystal(arrays, read_by_pymatgen(text))


UNUSUAL = {
    "charge": lambda text: text.replace("  Ti  Ti0", "  Ti4+  Ti0"),
    "isotope": lambda text: text.replace("  O  O2", "  D  O2"),
    "occupancy": lambda text: text.replace("0.50000000  1\n", "0.50000000  0.5\n", 1),
    "occupancy 1.0": lambda text: text.replace("0.50000000  1\n", "0.50000000  1.0\n", 1),
    "multiplicity": lambda text: text.replace("Ti0  1", "Ti0  2"),
    "uncertainty": lambda text: text.replace("0.30500000", "0.3050(2)"),
    "cell uncertainty": lambda text: text.replace("4.59000000", "4.5900(3)", 1),
    "unknown coordinate": lambda text: text.replace("0.30500000", "?", 1),
    "underscore in number": lambda text: text.replace("0.30500000", "0.3_05", 1),
    "space group": lambda text: text.replace("'P 1'", "'P 42/mnm'"),
    "group number": lambda text: text.replace("_Int_Tables_number   1", "_Int_Tables_number   136"),
    "two operations": lambda text: text.replace("  1  'x, y, z'\n", "  1  'x, y, z'\n  2  '-x, -y, -z'\n"),
    "other operation": lambda text: text.replace("'x, y, z'", "'-x, -y, -z'"),
    "extra column": lambda text: text.replace(
        "_atom_site_occupancy\n", "_atom_site_occupancy\n _atom_site_B_iso\n"
    ),
    "missing column": lambda text: text.replace(" _atom_site_occupancy\n", ""),
    "swapped columns": lambda text: text.replace("fract_x", "fract_q").replace("fract_y", "fract_x"),
    "two blocks": lambda text: text + text,
    "second loop": lambda text: text + "loop_\n _atom_site_aniso_label\n  Ti0\n",
    "comment in the loop": lambda text: text.replace("  Ti  Ti1", "# note\n  Ti  Ti1"),
    "quotes": lambda text: text.replace("  Ti  Ti0", "  'Ti'  Ti0"),
    "truncated row": lambda text: text.rstrip().rsplit("  ", 1)[0] + "\n",
    "header only": lambda text: text[: text.index("  Ti  Ti0")],
    "windows lines": lambda text: text.replace("\n", "\r\n"),
    "an atom less": lambda text: text[: text.index("  O  O5")],
    "formula of another": lambda text: text.replace("'Ti2 O4'", "'Ti2 O5'"),
    "formula that is none": lambda text: text.replace("'Ti2 O4'", "'2 4'"),
    "other Z": lambda text: text.replace("units_Z   2", "units_Z   3"),
    "no element": lambda text: text.replace("  Ti  Ti0", "  Xx  Ti0"),
    "empty": lambda text: "",
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_text_is_left_to_the_whole_reader(name: str) -> None:
    text = cif_of(rutile())
    assert parse_p1(text) is not None
    spoiled = UNUSUAL[name](text)
    assert spoiled != text
    assert parse_p1(spoiled) is None


def test_the_formula_of_a_p1_file_is_held_against_its_atoms() -> None:
    for name in ("an atom less", "formula of another", "formula that is none", "other Z"):
        with pytest.raises(ValueError, match="formula"):
            read_crystal(UNUSUAL[name](cif_of(rutile())))
