"""Names of space groups against two tables of others: spglib's own groups, and the settings of cctbx in pymatgen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pymatgen.symmetry.groups as pymatgen_groups
import pytest
from pymatgen.core import Lattice
from pymatgen.core.operations import SymmOp

from latentite.data.readers import space_groups
from latentite.data.readers.space_groups import (
    NUM_SETTINGS,
    Operations,
    named,
    with_choice,
    with_hall_symbol,
    with_number,
    with_schoenflies_symbol,
)

SETTINGS = [setting for setting, _ in space_groups._table()]


def choices(symbol: str) -> set[tuple[int, str]]:
    return {(setting.number, setting.choice) for setting in named(symbol)}


def test_the_operations_of_every_setting_are_a_group_of_its_number() -> None:
    assert len(SETTINGS) == NUM_SETTINGS
    assert {setting.number for setting in SETTINGS} == set(range(1, 231))
    for setting in SETTINGS:
        operations = setting.operations()
        assert operations.is_group(), setting
        assert operations.group_number() == setting.number


def test_names_have_the_operations_that_cctbx_gives_them() -> None:
    """An independent table: Hermann-Mauguin symbols and operations of cctbx, as pymatgen ships them."""
    table = json.loads((Path(pymatgen_groups.__file__).parent / "symm_ops.json").read_text())
    compared = 0
    for entry in table:
        if "(" in entry["hall"] or entry["universal_h_m"] == "C 2 e b":  # a typing error for C 2 c e
            continue
        operations = [SymmOp.from_xyz_str(text) for text in entry["symops"]]
        expected = Operations.on_grid(
            np.rint([operation.rotation_matrix for operation in operations]).astype(int),
            np.array([operation.translation_vector for operation in operations]),
        ).keys()
        found = [np.sort(setting.operations().keys()) for setting in named(entry["universal_h_m"])]
        assert any(np.array_equal(keys, np.sort(expected)) for keys in found), entry["universal_h_m"]
        compared += 1
    assert compared > 500


def test_no_name_means_two_space_groups() -> None:
    names = space_groups._names()
    assert len(names) > 1500
    assert {name for name, settings in names.items() if len({one.number for one in settings}) > 1} == set()


@pytest.mark.parametrize(
    ("symbol", "expected"),
    [
        ("F m -3 m", {(225, "")}),
        ("Fm-3m", {(225, "")}),
        ("Fm3m", {(225, "")}),
        ("FM-3M", {(225, "")}),
        ("f m -3 m", {(225, "")}),
        ("F 4/m -3 2/m", {(225, "")}),
        ("Fm\\-3m", {(225, "")}),
        ("Fm3\u0304m", {(225, "")}),
        ("Fm\u22123m", {(225, "")}),
        ("Fm\u20103m", {(225, "")}),
        ("Fm\\overline{3}m", {(225, "")}),
        ("F m -3 m (225)", {(225, "")}),
        ("R -3 c :H", {(167, "H")}),
        ("R -3 m H", {(166, "H")}),
        ("R-3m:r", {(166, "R")}),
        ("R -3 m (hexagonal axes)", {(166, "H")}),
        ("R -3 m", {(166, "H"), (166, "R")}),
        ("F d -3 m", {(227, "1"), (227, "2")}),
        ("F d -3 m S", {(227, "1")}),
        ("F d -3 m Z", {(227, "2")}),
        ("F d -3 m :1", {(227, "1")}),
        ("Fd-3m (origin choice 2)", {(227, "2")}),
        ("P 21/c", {(14, "b1"), (14, "a3")}),
        ("P2(1)/c", {(14, "b1"), (14, "a3")}),
        ("P2~1~/c", {(14, "b1"), (14, "a3")}),
        ("P 1 2_1/n 1", {(14, "b2")}),
        ("P 1 1 21/b", {(14, "c3")}),
        ("P 2\u2081 2\u2081 2\u2081", {(19, "")}),
        ("C m c a", {(64, "")}),
        ("C m c e", {(64, "")}),
        ("P b n m", {(62, "cab")}),
        ("C -1", {(2, "")}),
        ("P 3 2 1", {(150, "")}),
        ("P 32", {(145, "")}),
    ],
)
def test_a_name_is_understood_in_every_spelling(symbol: str, expected: set[tuple[int, str]]) -> None:
    assert choices(symbol) == expected


@pytest.mark.parametrize(
    "symbol", ["", "P", "P 7", "F m -3", "Fd-3m:3", "Fm-3m:H", "nonsense", "P 21/c extra", "225"]
)
def test_a_name_that_no_space_group_has_is_not_understood(symbol: str) -> None:
    if symbol == "F m -3":
        assert choices(symbol) == {(202, "")}  # one letter less is another group, not a spelling
    else:
        assert choices(symbol) == set()


def test_twenty_four_groups_leave_their_origin_open() -> None:
    by_number = {number: {one.choice for one in with_number(number)} for number in range(1, 231)}
    assert sum(found == {"1", "2"} for found in by_number.values()) == 24
    assert sum(found == {"H", "R"} for found in by_number.values()) == 7
    assert all(len(found) == 1 for found in by_number.values() if found not in ({"1", "2"}, {"H", "R"}))
    assert with_number(0) == with_number(231) == frozenset()


def test_hall_and_schoenflies_symbols_name_their_group() -> None:
    for setting, kind in space_groups._table():
        assert setting in with_hall_symbol(kind.hall_symbol)
        assert {one.number for one in with_schoenflies_symbol(kind.schoenflies)} == {setting.number}
    assert {one.choice for one in with_hall_symbol('-R 3 2"')} == {"H"}
    assert {one.number for one in with_hall_symbol("-F_4_2_3")} == {225}
    assert with_hall_symbol("-F 4 2 3 (x+1/8,y,z)") == frozenset()
    assert {one.number for one in with_choice("2") & named("P 4/n m m")} == {129}


def test_a_cell_fits_the_symmetry_that_leaves_its_lengths_and_angles() -> None:
    [cubic] = named("F m -3 m")
    [rhombohedral], [hexagonal] = named("R -3 m :R"), named("R -3 m :H")
    assert cubic.operations().fits(Lattice.cubic(5.64).matrix)
    assert cubic.operations().fits(
        Lattice.orthorhombic(5.64, 5.65, 5.64).matrix
    )  # the digits of a measurement
    assert not cubic.operations().fits(Lattice.tetragonal(5.64, 5.9).matrix)
    assert not cubic.operations().fits(Lattice.from_parameters(5.64, 5.64, 5.64, 90, 92, 90).matrix)
    assert hexagonal.operations().fits(Lattice.hexagonal(2.8, 14.0).matrix)
    assert not rhombohedral.operations().fits(Lattice.hexagonal(2.8, 14.0).matrix)
    assert rhombohedral.operations().fits(Lattice.rhombohedral(5.0, 33.0).matrix)


def test_operations_without_one_of_them_are_no_group() -> None:
    [setting] = named("P n m a")
    operations = setting.operations()
    for missing in range(len(operations)):
        kept = np.delete(np.arange(len(operations)), missing)
        fewer = Operations(rotations=operations.rotations[kept], translations=operations.translations[kept])
        assert not fewer.is_group()
