"""POSCAR: what VASP reads is read as VASP reads it; every other line is refused by name."""

from __future__ import annotations

import warnings
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.io import write as ase_write
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar

from latentite.data.readers.poscar import parse_poscar
from latentite.data.readers.records import Rejection
from latentite.data.readers.rows import Row, read

SALT = """Na Cl
1.0
5.64 0 0
0 5.64 0
0 0 5.64
Na Cl
1 1
Direct
0 0 0
0.5 0.5 0.5
"""


def structure_of(text: str) -> Structure:
    numbers, coords, lattice = astuple(parse_poscar(text))
    return Structure(Lattice(lattice), numbers, coords)


def edited(line: int, text: str, source: str = SALT) -> str:
    """The file with one line (from 1) replaced."""
    lines = source.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


def cartesian(scale: str) -> str:
    return edited(8, "Cartesian", edited(10, "2.82 2.82 2.82", edited(2, scale)))


def assert_is_salt(text: str, a: float = 5.64) -> None:
    structure = structure_of(text)
    assert [site.specie.symbol for site in structure] == ["Na", "Cl"]
    assert np.allclose(structure.lattice.matrix, a * np.eye(3), atol=1e-6)
    assert np.allclose(structure.frac_coords, [[0] * 3, [0.5] * 3], atol=1e-6)


@given(
    st.lists(st.floats(-1, 2), min_size=12, max_size=12), st.floats(1.5, 30.0), st.booleans(), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_a_negative_scale_is_the_volume_and_scales_cartesian_positions_by_its_root(
    values: list[float], volume: float, is_cartesian: bool, is_turned: bool
) -> None:
    """pymatgen multiplies Cartesian positions by the negative number itself, so that atoms end up anywhere."""
    matrix = np.eye(3) + 0.2 * np.sin(np.array(values[:9]).reshape(3, 3))
    matrix = matrix[[1, 0, 2]] if is_turned else matrix  # left-handed: the volume is its absolute value
    coords = np.array(values[9:])
    positions = coords @ matrix if is_cartesian else coords
    lines = [" ".join(map(repr, row)) for row in matrix.tolist()]
    mode = "cart" if is_cartesian else "dir"
    text = "\n".join(["x", f"{-volume!r}", *lines, "Fe", "1", mode, " ".join(map(repr, positions.tolist()))])
    _, found, lattice = astuple(parse_poscar(text))
    assert np.isclose(abs(np.linalg.det(lattice)), volume, rtol=1e-9)
    assert np.allclose(lattice, matrix * (volume / abs(np.linalg.det(matrix))) ** (1 / 3), atol=1e-9)
    assert np.allclose(found, coords, atol=1e-9)


@pytest.mark.parametrize("scale", ["-179.406144", "1.0", "1.0D+00", "1.d0 ! Fortran", "1.0 1.0 1.0"])
def test_scales_in_every_spelling_give_the_same_salt(scale: str) -> None:
    assert_is_salt(edited(2, scale))
    assert_is_salt(cartesian(scale))


def test_three_scales_stretch_x_y_and_z() -> None:
    structure = structure_of(cartesian("1 2 3"))
    assert np.allclose(structure.lattice.matrix, np.diag([5.64, 11.28, 16.92]))
    assert np.allclose(structure.frac_coords[1], 0.5)
    skew = structure_of(edited(3, "5.64 1.0 1.0", edited(2, "1 2 3")))
    assert np.allclose(skew.lattice.matrix[0], [5.64, 2.0, 3.0])


@pytest.mark.parametrize("letter", ["Cartesian", "cart", "K", "k-space", "  C"])
def test_c_and_k_mean_cartesian(letter: str) -> None:
    assert_is_salt(edited(8, letter, edited(10, "2.82 2.82 2.82")))


@pytest.mark.parametrize(
    "symbols", ["Na_pv Cl", "Na_pv/6a2f546d Cl/79d9987ad", "Na_sv_GW Cl_h_GW", "  Na   Cl  "]
)
def test_names_of_potentials_are_elements(symbols: str) -> None:
    assert_is_salt(edited(6, symbols))


def test_selective_dynamics_velocities_and_predictor_are_no_positions() -> None:
    selective = SALT.replace(
        "Direct\n0 0 0\n0.5 0.5 0.5", "Selective\nDirect\n0 0 0 T T F\n0.5 0.5 0.5 F F F Cl"
    )
    assert_is_salt(selective)
    velocities = SALT + "\n 0.1D-02 0 0\n 0 0 0\n"
    assert_is_salt(velocities)
    assert_is_salt(velocities + "\n1\n0.5\n1 2 3\n")
    assert_is_salt(SALT + "Cartesian\n 0.1 0 0\n 0 0 0\n")
    assert_is_salt(SALT + "Lattice velocities and vectors\n1\n" + "0 0 0\n" * 6)
    assert_is_salt(SALT + "\n\n")


def test_lists_of_elements_and_counts_may_be_wrapped() -> None:
    assert_is_salt(edited(6, "Na\nCl", edited(7, "1\n1")))


def test_vasp_4_is_read_where_each_position_names_its_element() -> None:
    four = "\n".join(line for k, line in enumerate(SALT.splitlines()) if k != 5)
    with pytest.raises(ValueError, match="names no elements"):
        parse_poscar(four)
    lines = four.splitlines()
    assert_is_salt("\n".join([*lines[:7], lines[7] + " Na", lines[8] + " Cl1"]))
    with pytest.raises(ValueError, match="names no elements"):
        parse_poscar("\n".join([*lines[:7], lines[7] + " Na", lines[8] + " Va"]))


REFUSED = {
    "a scale of zero": (edited(2, "0.0"), "line 2"),
    "two scales": (edited(2, "1.0 2.0"), "line 2"),
    "three scales, one negative": (edited(2, "1 -1 1"), "line 2"),
    "no scale": (edited(2, "about one"), "line 2"),
    "a scale that is no number": (edited(2, "nan"), "line 2"),
    "an infinite scale": (edited(2, "1e400"), "line 2"),
    "a flat cell with a volume": (edited(5, "0 5.64 0", edited(2, "-100")), "volume is zero"),
    "a lattice vector of two numbers": (edited(4, "0 5.64"), "line 4"),
    "a lattice vector of four numbers": (edited(4, "0 5.64 0 0"), "line 4"),
    "a vacancy": (edited(6, "Na Va"), "'Va' .* is no element"),
    "a placeholder": (edited(6, "Na X"), "'X' .* is no element"),
    "deuterium": (edited(6, "D Cl"), "isotope D"),
    "a charge": (edited(6, "Na+ Cl-"), r"'Na\+' .* is no element"),
    "upper case": (edited(6, "NA CL"), "'NA' .* is no element"),
    "elements and counts in one line": (edited(6, "Na Cl 1 1"), "is no element|number of atoms"),
    "fewer counts than elements": (edited(7, "2"), "number of atoms"),
    "more counts than elements": (edited(7, "1 1 1"), "number of atoms"),
    "a count of zero": (edited(7, "2 0"), "number of atoms"),
    "a count that is no number": (edited(7, "1 1.5"), "line 7|is no element"),
    "more counts than positions": (edited(7, "1 2"), "announce 3 atoms, but 2 lines"),
    "fewer counts than positions": (SALT + "0.1 0.2 0.3\n", "announce 2 atoms, but line 11 goes on"),
    "positions after a blank line": (SALT + "\n0.1 0.2 0.3\n", "no velocities"),
    "a second file": (SALT + SALT, "goes on with 'Na Cl'"),
    "no line Direct": (SALT.replace("Direct\n", ""), "line 8 must be Direct or Cartesian"),
    "another mode": (edited(8, "Fractional"), "line 8 must be Direct or Cartesian"),
    "a blank mode": (edited(8, ""), "line 8 must be Direct or Cartesian"),
    "positions grown together": (edited(10, "0.5-0.3 0.5"), "line 10"),
    "a position that is no number": (edited(10, "nan 0.5 0.5"), "line 10"),
    "an overflowing position": (edited(10, "1e400 0.5 0.5"), "numbers up to"),
    "a label that contradicts": (edited(9, "0 0 0 Cl"), "line 9 says Cl where .* say Na"),
    "a comment alone": ("Na Cl\n", "1 lines"),
    "a cut file": ("\n".join(SALT.splitlines()[:9]), "announce 2 atoms, but 1 lines"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_its_line(name: str) -> None:
    text, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        parse_poscar(text)


def test_a_refused_poscar_is_a_rejection_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "good.vasp").write_text(SALT)
    (tmp_path / "POSCAR_bad").write_text(edited(2, "0"))
    bad, good = read(tmp_path)
    assert isinstance(bad, Rejection)
    assert "line 2" in bad.reason
    assert isinstance(good, Row)


@pytest.mark.parametrize("is_cartesian", [True, False])
def test_what_pymatgen_and_ase_write_is_read_as_they_meant_it(is_cartesian: bool, tmp_path: Path) -> None:
    lattice = Lattice.from_parameters(4, 5, 6, 80, 95, 100)
    structure = Structure(lattice, ["K", "I", "K"], [[0.1, 0.2, 0.3], [0.6, 0.71, 0.83], [-0.2, 0.4, 1.3]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = Poscar(structure, sort_structure=False).get_str(
            direct=not is_cartesian, significant_figures=12
        )
    found = structure_of(text)
    assert found.species == structure.species
    assert np.allclose(found.cart_coords, structure.cart_coords, atol=1e-9)
    assert np.allclose(found.lattice.matrix, lattice.matrix, atol=1e-9)
    atoms = Atoms("KIK", cell=lattice.matrix, scaled_positions=structure.frac_coords, pbc=True)
    ase_write(tmp_path / "POSCAR", atoms, format="vasp", direct=not is_cartesian)
    found = structure_of((tmp_path / "POSCAR").read_text())
    assert np.allclose(found.cart_coords, structure.cart_coords, atol=1e-9)
