"""Whole CIFs, as users have them, against the crystal that they mean: read rightly, or refused with the reason.

The stories behind: of eighty small files made after public bug reports of this field, forty were once taken as another
crystal without a word, most of them because a space group that was not understood became P1.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher
from pymatgen.io.cif import CifParser, CifWriter

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers import space_groups
from latentite.data.readers.cif_crystal import read_crystal
from latentite.elements import SYMBOLS

SALT = [("Na1", "Na", "0 0 0"), ("Cl1", "Cl", "0.5 0.5 0.5")]
LAYERED = [("Li1", "Li", "0 0 0"), ("Co1", "Co", "0 0 0.5"), ("O1", "O", "0 0 0.23968")]
DIAMOND = {"1": [("C1", "C", "0 0 0")], "2": [("C1", "C", "0.125 0.125 0.125")]}
IRON_SELENIDE = {
    "1": [("Fe1", "Fe", "0 0 0"), ("Se1", "Se", "0 0.5 0.2672")],
    "2": [("Fe1", "Fe", "0.75 0.25 0"), ("Se1", "Se", "0.25 0.25 0.2672")],
}


def cif(
    cell: str,
    sites: list[tuple[str, str, str]],
    *tags: str,
    columns: str = "",
) -> str:
    """A small CIF: `cell` holds three lengths and three angles, `tags` are lines before the sites."""
    names = ["length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"]
    lines = ["data_x", *tags]
    lines += [f"_cell_{name} {value}" for name, value in zip(names, cell.split(), strict=True)]
    lines += ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"] + columns.split()
    return "\n".join([*lines, *(" ".join(site) for site in sites), ""])


def salt(*tags: str) -> str:
    return cif("5.64 5.64 5.64 90 90 90", SALT, *tags)


def layered(*tags: str) -> str:
    return cif("2.8156 2.8156 14.0542 90 90 120", LAYERED, *tags)


def diamond(origin: str, *tags: str) -> str:
    return cif("3.567 3.567 3.567 90 90 90", DIAMOND[origin], *tags)


def iron_selenide(origin: str, *tags: str) -> str:
    return cif("3.7734 3.7734 5.5258 90 90 90", IRON_SELENIDE[origin], *tags)


def structure_of(arrays: CrystalArrays) -> Structure:
    numbers, coords, lattice = astuple(arrays)
    return Structure(Lattice(lattice), [SYMBOLS[n - 1] for n in numbers], coords)


def assert_is(text: str, formula: str, density: float) -> None:
    structure = structure_of(read_crystal(text))
    assert structure.composition.formula.replace(" ", "") == formula
    assert structure.density == pytest.approx(density, rel=2e-3)


def assert_refused(text: str, *words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the words are looked for below
        read_crystal(text)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# ------------------------------------------------------------------------------------------ symmetry


@pytest.mark.parametrize(
    "tag",
    [
        "_symmetry_space_group_name_H-M 'F m -3 m'",
        "_symmetry_space_group_name_H-M 'f m -3 m'",
        "_symmetry_space_group_name_H-M Fm3m",
        "_symmetry_space_group_name_H-M FM-3M",
        "_symmetry_space_group_name_H-M 'F 4/m -3 2/m'",
        "_symmetry_space_group_name_H-M 'Fm\\-3m'",
        "_space_group_name_H-M_alt 'F m -3 m'",
        "_space_group.name_H-M_ref 'F m -3 m'",
        "_space_group_name_H-M_full 'F 4/m -3 2/m'",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry_space_group_name_Hall '-F 4 2 3'",
        "_space_group_IT_number 225",
        "_space_group.IT_number 225",
        "_symmetry_Int_Tables_number 225",
        "_space_group_name_Schoenflies Oh^5",
    ],
)
def test_rock_salt_is_rock_salt_whatever_names_its_space_group(tag: str) -> None:
    assert_is(salt(tag), "Na4Cl4", 2.164)


@pytest.mark.parametrize(
    "tag",
    [
        "_symmetry_space_group_name_H-M 'F m 3 q'",
        "_symmetry_space_group_name_H-M 'Fm-3m extra'",
        "_space_group_name_Hall '-F 4 2 3 (x+1/4,y,z)'",
        "_space_group_IT_number 231",
        "_space_group_IT_number cubic",
        "_space_group_name_Schoenflies Xh^5",
        "_space_group_magn.name_BNS \"Fm'-3'm'\"",
        "_space_group_transform_Pp_abc 'a+b,b,c;0,0,0'",
        "_space_group_crystal_system cubic",
        "_symmetry_cell_setting cubic",
        "_space_group_name_new 'Fm-3m'",
    ],
)
def test_symmetry_that_is_named_but_not_understood_never_becomes_p1(tag: str) -> None:
    value = tag.split(maxsplit=1)[1].strip("'\"")
    assert_refused(salt(tag), value if "magn" not in tag else "magnetic space group")


def test_a_file_is_p1_where_it_says_so_or_says_nothing() -> None:
    for tags in (
        (),
        ("_symmetry_space_group_name_H-M 'P 1'",),
        ("_space_group_IT_number 1",),
        ("_symmetry_equiv_pos_as_xyz 'x, y, z'",),
        ("_space_group_crystal_system triclinic", "_symmetry_space_group_name_H-M ?"),
    ):
        assert read_crystal(salt(*tags)).num_atoms == 2


@pytest.mark.parametrize(
    "name", ["R -3 m", "R -3 m :H", "R-3m:H", "R -3 m H", "R -3 m h", "R -3 2/m", "R3\u0304m"]
)
def test_rhombohedral_crystals_on_hexagonal_axes_are_read_by_every_name(name: str) -> None:
    assert_is(layered(f"_symmetry_space_group_name_H-M '{name}'"), "Li3Co3O6", 5.053)


def test_the_cell_tells_hexagonal_from_rhombohedral_axes() -> None:
    sites = [("Al1", "Al", "0.35216 0.35216 0.35216"), ("O1", "O", "0.5561 0.9439 0.25")]
    for name in ("R -3 c", "R -3 c :R", "R -3 c R"):
        text = cif(
            "5.1284 5.1284 5.1284 55.28 55.28 55.28", sites, f"_symmetry_space_group_name_H-M '{name}'"
        )
        assert_is(text, "Al4O6", 3.988)
    hexagonal = "4.758 4.758 12.991 90 90 120"
    assert_refused(
        cif(hexagonal, sites, "_symmetry_space_group_name_H-M 'R -3 c :R'"), "does not fit the cell"
    )


def test_symmetry_that_does_not_fit_the_cell_is_refused() -> None:
    text = cif("5.64 5.64 6.2 90 90 90", SALT, "_symmetry_space_group_name_H-M 'F m -3 m'")
    assert_refused(text, "'F m -3 m'", "does not fit the cell")
    listed = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\ny,x,z"
    assert_refused(cif("5.64 5.8 6.2 90 90 90", SALT, listed), "do not fit the cell")


def test_two_names_that_contradict_each_other_are_refused() -> None:
    assert_refused(
        salt("_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 225"),
        "'P 1'",
        "'225'",
        "contradict",
    )


def test_a_code_of_axes_and_origin_beside_the_number_is_heard() -> None:
    tags = ("_space_group_IT_number 227", "_space_group_IT_coordinate_system_code")
    assert_is(diamond("2", tags[0], f"{tags[1]} 2"), "C8", 3.516)
    assert_is(diamond("1", tags[0], f"{tags[1]} 1"), "C8", 3.516)


def test_short_monoclinic_symbols_follow_the_axis_of_the_cell() -> None:
    sites = [
        ("Zr1", "Zr", "0.2754 0.0395 0.2083"),
        ("O1", "O", "0.07 0.3317 0.3447"),
        ("O2", "O", "0.4496 0.7569 0.4792"),
    ]
    for cell, name in [
        ("5.1505 5.2116 5.3173 90 99.23 90", "P 21/c"),
        ("5.1505 5.2116 5.3173 90 99.23 90", "P 1 21/c 1"),
    ]:
        assert_is(cif(cell, sites, f"_symmetry_space_group_name_H-M '{name}'"), "Zr4O8", 5.81)
    turned = [
        (label, symbol, " ".join(np.array(coords.split())[[2, 0, 1]])) for label, symbol, coords in sites
    ]
    text = cif("5.3173 5.1505 5.2116 90 90 99.23", turned, "_symmetry_space_group_name_H-M 'P 21/b'")
    assert_is(text, "Zr4O8", 5.81)


def listed(*operations: str) -> str:
    return "\n".join(["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{operation}'" for operation in operations)])


def texts_of(setting: space_groups.Setting) -> list[str]:
    """Its operations as a CIF lists them."""
    operations = setting.operations()
    texts = []
    for rotation, translation in zip(
        operations.rotations.tolist(), operations.translations.tolist(), strict=True
    ):
        terms = ["".join(f"{value:+d}{'xyz'[k]}" for k, value in enumerate(row) if value) for row in rotation]
        texts.append(
            ",".join(f"{term}+{round(24 * t)}/24" for term, t in zip(terms, translation, strict=True))
        )
    return texts


def test_operations_that_are_not_the_named_group_need_formula_and_z() -> None:
    """Some exporters write a crystal's space group beside `x, y, z` alone; only some of them expand the cell."""
    tags = ("_symmetry_space_group_name_H-M 'F m -3 m'", listed("x,y,z"))
    assert_refused(salt(*tags), "space group 1", "'F m -3 m'")
    assert_refused(salt("_symmetry_space_group_name_H-M 'no such'", listed("x,y,z")), "'no such'")
    assert_refused(
        salt(*tags, "_chemical_formula_sum 'Na Cl'", "_cell_formula_units_Z 4"), "Cl1 Na1", "'Na Cl'"
    )
    text = cif(
        "2.8 2.8 2.8 90 90 90", SALT, *tags, "_chemical_formula_sum 'Na Cl'", "_cell_formula_units_Z 1"
    )
    assert read_crystal(text).num_atoms == 2


def test_operations_decide_over_a_name_with_two_origins() -> None:
    second = next(setting for setting in space_groups.named("F d -3 m") if setting.choice == "2")
    tags = ("_symmetry_space_group_name_H-M 'F d -3 m'", listed(*texts_of(second)))
    assert_is(diamond("2", *tags), "C8", 3.516)


@pytest.mark.parametrize(
    "operation", ["x,y", "x,y,z,w", "x,y,2*x", "x,y,q", "x,,z", "x+1/0,y,z", "x y z", "x,y,z+0.123"]
)
def test_an_operation_that_is_none_is_refused(operation: str) -> None:
    assert_refused(salt(listed("x,y,z", operation)), "operation")


def test_a_list_of_operations_that_lacks_one_is_refused() -> None:
    assert_refused(salt(listed("x,y,z", "-x,-y,z", "-x,y,-z")), "not a group")
    assert read_crystal(salt(listed("x,y,z", "-x,-y,z", "-x,y,-z", "x,-y,-z"))).num_atoms == 2


def test_operations_of_both_dictionaries_must_be_the_same() -> None:
    other = listed("x,y,z", "-x,-y,-z").replace(
        "_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"
    )
    assert read_crystal(salt(listed("-x,-y,-z", "x,y,z"), other)).num_atoms == 2
    assert_refused(salt(listed("x,y,z", "-x,y,-z"), other), "listed twice")


def test_magnetic_operations_are_taken_without_their_time_reversal() -> None:
    magnetic = "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,-1\n"
    centring = "loop_\n_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx+1/2,y+1/2,z+1/2,-1\n"
    crystal = cif("4 4 4 90 90 90", [("Fe1", "Fe", "0.1 0.2 0.3")], magnetic + centring)
    coords = {tuple(np.round(row, 6)) for row in read_crystal(crystal).frac_coords}
    assert coords == {(0.1, 0.2, 0.3), (0.9, 0.8, 0.7), (0.6, 0.7, 0.8), (0.4, 0.3, 0.2)}


def test_modulated_structures_are_refused_by_name() -> None:
    assert_refused(salt("_cell_modulation_dimension 1"), "modulated")
    assert read_crystal(salt("_cell_modulation_dimension 0")).num_atoms == 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # pymatgen misses a formula
@given(data=st.data())
def test_every_setting_expands_as_pymatgen_expands_its_operations(data: st.DataObject) -> None:
    """Independent of our expansion: pymatgen reads the same operations from a list."""
    setting = data.draw(st.sampled_from([setting for setting, _ in space_groups._table()]))
    a, b, c = (data.draw(st.floats(6, 11)) for _ in range(3))
    system = setting.number
    lengths = (a, b, c) if system < 75 else (a, a, c) if system < 195 and setting.choice != "R" else (a, a, a)
    angles = (90.0, 90.0, 120.0 if 143 <= system < 195 and setting.choice != "R" else 90.0)
    cell = " ".join(map(str, (*lengths, *angles)))
    coords = " ".join(f"{data.draw(st.integers(0, 24)) / 24:.8f}" for _ in range(3))
    kind = space_groups._table()[setting.hall_number - 1][1]
    text = cif(cell, [("Si1", "Si", coords)], f"_space_group_name_Hall '{kind.hall_symbol}'")
    theirs = CifParser.from_str(
        cif(cell, [("Si1", "Si", coords)], listed(*texts_of(setting)))
    ).parse_structures(primitive=False)[0]
    ours = structure_of(read_crystal(text))
    assert len(ours) == len(theirs)
    distances = ours.lattice.get_all_distances(ours.frac_coords, theirs.frac_coords)
    assert distances.min(axis=0).max() < 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning")  # pymatgen tells what it rounds
@pytest.mark.parametrize("with_operations", [True, False])
def test_real_crystals_with_symmetry_are_those_that_pymatgen_reads(
    shared_data: Path, with_operations: bool
) -> None:
    path = shared_data / "mp_20_biternary" / "test.csv.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    csv.field_size_limit(2**30)
    with gzip.open(path, "rt", newline="") as handle:
        texts = [row["cif"] for row in csv.DictReader(handle)][::30]
    for text in texts:
        symmetric = str(CifWriter(Structure.from_str(text, "cif"), symprec=0.1, refine_struct=True))
        expected = CifParser.from_str(symmetric).parse_structures(primitive=False)[0]
        if not with_operations:
            head, _, rest = symmetric.partition("loop_\n _symmetry_equiv")
            symmetric = head + rest[rest.index("loop_\n _atom_site") :]
        found = structure_of(read_crystal(symmetric))
        assert len(found) == len(expected)
        assert StructureMatcher(primitive_cell=False, scale=False).fit(expected, found)


def test_coordinates_with_two_digits_stay_on_their_special_position() -> None:
    sites = [("Mg1", "Mg", "0.33 0.67 0.25")]
    text = cif("3.2 3.2 5.2 90 90 120", sites, "_symmetry_space_group_name_H-M 'P 63/m m c'")
    numbers, coords, _ = astuple(read_crystal(text))
    assert len(numbers) == 2
    np.testing.assert_allclose(coords[0], [1 / 3, 2 / 3, 0.25], atol=1e-9)
    apart = cif("3.2 3.2 5.2 90 90 120", [("Mg1", "Mg", "0.30 0.64 0.25")], "_space_group_IT_number 194")
    assert read_crystal(apart).num_atoms == 6


# ------------------------------------------------------------------------------------------ origin choice


@pytest.mark.parametrize("origin", ["1", "2"])
@pytest.mark.parametrize("suffix", [":{}", " {}", " (origin choice {})"])
def test_a_named_origin_is_heard(origin: str, suffix: str) -> None:
    written = {"1": "S", "2": "Z"}[origin] if suffix == " {}" else origin
    name = "F d -3 m" + suffix.format(written)
    assert_is(diamond(origin, f"_symmetry_space_group_name_H-M '{name}'"), "C8", 3.516)
    name = "P 4/n m m" + suffix.format(written)
    assert_is(iron_selenide(origin, f"_symmetry_space_group_name_H-M '{name}'"), "Fe2Se2", 5.69)


@pytest.mark.parametrize("origin", ["1", "2"])
@pytest.mark.parametrize("tag", ["_symmetry_space_group_name_H-M 'F d -3 m'", "_space_group_IT_number 227"])
def test_formula_and_z_choose_the_origin(origin: str, tag: str) -> None:
    assert_is(diamond(origin, tag, "_chemical_formula_sum C", "_cell_formula_units_Z 8"), "C8", 3.516)


@pytest.mark.parametrize("origin", ["1", "2"])
def test_density_and_overlap_choose_the_origin_without_a_formula(origin: str) -> None:
    """Coordinates of choice 2 read in choice 1 gave diamond of 7.03 g/cm3 and iron selenide of 18."""
    assert_is(diamond(origin, "_symmetry_space_group_name_H-M 'F d -3 m'"), "C8", 3.516)
    assert_is(iron_selenide(origin, "_symmetry_space_group_name_H-M 'P 4/n m m'"), "Fe2Se2", 5.69)


def test_an_origin_that_nothing_decides_is_refused() -> None:
    text = cif(
        "14 14 14 90 90 90", [("Si1", "Si", "0.10 0.17 0.31")], "_symmetry_space_group_name_H-M 'P n -3 n'"
    )
    one, two = (read_crystal(text.replace("n -3 n", f"n -3 n :{origin}")) for origin in ("1", "2"))
    assert one.num_atoms == two.num_atoms
    assert not StructureMatcher(stol=0.05).fit(structure_of(one), structure_of(two))
    assert_refused(text, "'P n -3 n'", "2 choices", "origin")


def test_an_origin_that_makes_no_difference_needs_no_choice() -> None:
    """Both origins put these atoms on the same net."""
    text = cif("5 5 7 90 90 90", [("Fe1", "Fe", "0 0.25 0")], "_symmetry_space_group_name_H-M 'P 4/n m m'")
    one, two, unnamed = (
        read_crystal(text.replace("n m m", f"n m m {origin}")) for origin in (":1", ":2", "")
    )
    assert StructureMatcher(stol=0.01).fit(structure_of(one), structure_of(two))
    assert StructureMatcher(stol=0.01).fit(structure_of(one), structure_of(unnamed))


# ------------------------------------------------------------------------------------------ the file's own formula


def hydroxide(*tags: str, sites: list[tuple[str, str, str]] | None = None, columns: str = "") -> str:
    here = sites or [("Mg1", "Mg", "0 0 0"), ("O1", "O", "0.33333 0.66667 0.2203")]
    name = "_symmetry_space_group_name_H-M 'P -3 m 1'"
    return cif("3.142 3.142 4.766 90 90 120", here, name, *tags, columns=columns)


FORMULA = ("_chemical_formula_sum 'H2 Mg O2'", "_cell_formula_units_Z 1")


def test_hydrogen_that_was_not_located_is_refused_with_both_formulas() -> None:
    assert_refused(hydroxide(*FORMULA), "Mg1 O2", "'H2 Mg O2'", "H may not have been located")
    whole = [
        ("Mg1", "Mg", "0 0 0"),
        ("O1", "O", "0.33333 0.66667 0.2203"),
        ("H1", "H", "0.33333 0.66667 0.413"),
    ]
    assert_is(hydroxide(*FORMULA, sites=whole), "Mg1H2O2", 2.377)


def test_attached_hydrogens_are_refused_with_and_without_a_formula() -> None:
    sites = [("Mg1", "Mg", "0 0 0 0"), ("O1", "O", "0.33333 0.66667 0.2203 1")]
    columns = "_atom_site_attached_hydrogens"
    assert_refused(hydroxide(*FORMULA, sites=sites, columns=columns), "Mg1 O2", "'H2 Mg O2'")
    assert_refused(hydroxide(sites=sites, columns=columns), "hydrogen attached")


@pytest.mark.parametrize("label", ["OH1", "Wat1", "OW1", "O-H1", "H2O1"])
def test_labels_of_groups_of_atoms_are_not_single_atoms(label: str) -> None:
    sites = [("Mg1", "?", "0 0 0"), (label, "?", "0.33333 0.66667 0.2203")]
    assert_refused(hydroxide(*FORMULA, sites=sites), "'H2 Mg O2'")
    if label != "O-H1":
        assert_refused(hydroxide(sites=sites), label)


def test_a_missing_element_is_refused_with_both_formulas() -> None:
    text = layered("_symmetry_space_group_name_H-M 'R -3 m'", "_chemical_formula_sum 'Co Li O2'")
    assert_is(text, "Li3Co3O6", 5.053)
    assert_refused(text.replace("Li1 Li 0 0 0\n", ""), "Co3 O6", "'Co Li O2'", "Li may not have been located")


def test_z_is_held_against_the_atoms_too() -> None:
    tags = ("_symmetry_space_group_name_H-M 'F m -3 m'", "_chemical_formula_sum 'Cl Na'")
    assert_is(salt(*tags, "_cell_formula_units_Z 4"), "Na4Cl4", 2.164)
    assert_refused(salt(*tags, "_cell_formula_units_Z 1"), "Cl4 Na4", "1 formula units")


@pytest.mark.parametrize("text", ["Na1 Cl1", "NaCl", "Cl1.00 Na1.00", "NA CL", "Cl Na 0+", "Na1(1) Cl1(1)"])
def test_a_formula_is_understood_in_every_spelling(text: str) -> None:
    assert read_crystal(salt(f"_chemical_formula_sum '{text}'")).num_atoms == 2


def test_a_formula_in_capitals_may_be_one_element_or_two() -> None:
    sites = [("Co1", "CO", "0 0 0"), ("O1", "O", "0.5 0.5 0.5")]
    assert read_crystal(
        cif("4 4 4 90 90 90", sites, "_chemical_formula_sum 'Co O'")
    ).atomic_numbers.tolist() == [27, 8]
    assert_refused(cif("4 4 4 90 90 90", sites), "'CO'")
    assert_refused(cif("4 4 4 90 90 90", sites, "_chemical_formula_sum 'CO O'"), "'CO'")
    assert_refused(cif("4 4 4 90 90 90", sites, "_chemical_formula_sum 'C1 O2'"), "'C1 O2'")


def test_a_formula_that_is_not_understood_is_refused() -> None:
    assert_refused(salt("_chemical_formula_sum 'Na Cl, 2(H2 O)'"), "'Na Cl, 2(H2 O)'", "not understood")


# ------------------------------------------------------------------------------------------ sites


@pytest.mark.parametrize("name", ["Va", "Vac", "X", "VA", "x", "\u25a1"])
def test_a_vacancy_is_called_a_vacancy_and_never_vanadium(name: str) -> None:
    assert_refused(salt().replace("Cl1 Cl", f"Cl1 {name}"), "vacancy", "Cl1")
    assert_refused(salt("_chemical_formula_sum 'Na V'").replace("Cl1 Cl", f"{name}1 ?"), "vacancy")


@pytest.mark.parametrize(
    "name",
    ["M1", "Ln", "NH4", "CN", "H2O", "OH", "R", "Q", "1", "Nb,Zr", "Fe/Ni", "Fe0.5Ni0.5", "Me", "RE", "TM"],
)
def test_what_is_no_element_is_refused_by_its_text(name: str) -> None:
    first, second = (str(error) for error in (refusal(name), refusal(name)))
    assert first == second  # pymatgen gave such a site an atomic number that differed from run to run
    assert f"'{name}'" in first


def refusal(name: str) -> ValueError:
    try:
        read_crystal(salt().replace("Cl1 Cl", f"Cl1 {name}"))
    except ValueError as error:
        return error
    pytest.fail(f"{name} was read as an atom")


@pytest.mark.parametrize("name", ["Na", "Na+", "Na1+", "Na+1", "NA", "na", "Na1", "Na0+"])
def test_an_element_is_read_with_its_charge_in_every_spelling(name: str) -> None:
    assert read_crystal(salt().replace("Na1 Na", f"Na1 {name}")).atomic_numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("label", "number"), [("Fe1A", 26), ("O12B", 8), ("Fe(1)", 26), ("Cl", 17), ("U_1", 92)]
)
def test_a_label_names_its_element_where_there_is_no_type_symbol(label: str, number: int) -> None:
    assert read_crystal(salt().replace("Na1 Na", f"{label} .")).atomic_numbers.tolist() == [number, 17]


def test_a_symbol_in_capitals_that_also_names_a_group_needs_the_formula() -> None:
    """`RE` is rhenium in a file of capitals, and a rare earth elsewhere: it was always rhenium."""
    sites = [("RE1", "?", "0 0 0"), ("O1", "?", "0.5 0 0")]
    assert read_crystal(
        cif("4 4 4 90 90 90", sites, "_chemical_formula_sum 'RE O'")
    ).atomic_numbers.tolist() == [75, 8]
    assert_refused(cif("4 4 4 90 90 90", sites), "'RE1'")


def test_blanks_around_a_quoted_symbol_are_nothing() -> None:
    assert read_crystal(salt().replace("Na1 Na", "Na1 'Na '")).atomic_numbers.tolist() == [11, 17]


def test_labels_of_minerals_are_read_where_the_formula_knows_one_reading() -> None:
    sites = [("SiT", "?", "0 0 0"), ("OA", "?", "0.5 0.5 0.5"), ("Ow", "?", "0.5 0 0")]
    text = cif("4 4 4 90 90 90", sites, "_chemical_formula_sum 'Si O2'")
    assert read_crystal(text).atomic_numbers.tolist() == [14, 8, 8]
    assert_refused(cif("4 4 4 90 90 90", sites), "'SiT'")


def test_occupancies_of_0_and_below_1_are_said_as_such() -> None:
    def occupied(value: str) -> str:
        sites = [("Na1", "Na", "0 0 0 1"), ("Cl1", "Cl", f"0.5 0.5 0.5 {value}")]
        return cif("4 4 4 90 90 90", sites, columns="_atom_site_occupancy")

    assert_refused(occupied("0"), "Cl1", "occupancy 0")
    assert_refused(occupied("0.0"), "Cl1", "occupancy 0")
    assert_refused(occupied("0.98(2)"), "partial occupancy", "Cl1")
    for whole in ("1", "1.0", "1.000(3)", "?", "."):
        assert read_crystal(occupied(whole)).num_atoms == 2
    assert_refused(occupied("full"), "Cl1", "'full'")


def test_multiplicities_of_the_file_are_held_against_its_symmetry() -> None:
    """A file that leaves its symmetry out but gives multiplicities is no P1 crystal."""

    def with_multiplicities(*tags: str, multiplicity: int) -> str:
        sites = [("Na1", "Na", f"0 0 0 {multiplicity}"), ("Cl1", "Cl", "0.5 0.5 0.5 .")]
        return cif("5.64 5.64 5.64 90 90 90", sites, *tags, columns="_atom_site_symmetry_multiplicity")

    named = "_symmetry_space_group_name_H-M 'F m -3 m'"
    assert_is(with_multiplicities(named, multiplicity=4), "Na4Cl4", 2.164)
    assert_refused(with_multiplicities(named, multiplicity=8), "[4] atoms each", "[8]")
    assert_refused(with_multiplicities(multiplicity=4), "[1] atoms each", "[4]")
    confirmed = ("_chemical_formula_sum 'Na Cl'", "_cell_formula_units_Z 1")
    assert read_crystal(with_multiplicities(*confirmed, multiplicity=4)).num_atoms == 2


def test_multiplicities_choose_the_origin() -> None:
    for sites in IRON_SELENIDE.values():
        given = [(label, symbol, f"{coords} 2") for label, symbol, coords in sites]
        tags = ("_symmetry_space_group_name_H-M 'P 4/n m m'",)
        text = cif("3.7734 3.7734 5.5258 90 90 90", given, *tags, columns="_atom_site_symmetry_multiplicity")
        assert_is(text, "Fe2Se2", 5.69)


def test_alternatives_and_dummies_are_no_atoms() -> None:
    def flagged(column: str, *values: str) -> str:
        sites = [(f"Na{k}", "Na", f"0 0 0.{2 * k + 1} {value}") for k, value in enumerate(values)]
        return cif("5 5 9 90 90 90", sites, columns=column)

    assert_refused(flagged("_atom_site_disorder_group", ".", "1", "2"), "disordered", "1, 2")
    assert read_crystal(flagged("_atom_site_disorder_group", ".", "0", ".")).num_atoms == 3
    assert_refused(flagged("_atom_site_calc_flag", "d", "dum"), "dummy")


def test_sites_without_coordinates_are_refused() -> None:
    assert_refused(salt().replace("0.5 0.5 0.5", "? 0.5 0.5"), "Cl1", "'?'")
    assert_refused(salt().replace("fract_x", "Cartn_x"), "_atom_site_fract_x is missing")
    assert_refused(salt().replace("_cell_angle_gamma 90\n", ""), "_cell_angle_gamma is missing")


# ------------------------------------------------------------------------------------------ blocks


def test_a_broken_block_beside_a_good_one_is_a_rejection_of_the_file() -> None:
    broken = salt("_symmetry_space_group_name_H-M 'F m -3 m'").replace("_cell_length_a 5.64\n", "")
    for text in (salt() + broken.replace("data_x", "data_y"), broken + salt().replace("data_x", "data_y")):
        assert_refused(text, "2 blocks with atoms (")
    assert_refused(salt() + salt(), "2 blocks with atoms")  # of the same name, one once overwrote the other


def test_blocks_without_atoms_do_not_count() -> None:
    for text in (
        "data_global\n_journal_year 2020\n" + salt(),
        "global_\n" + salt(),
        salt() + "data_powder\n_pd_meas 1\n",
    ):
        assert read_crystal(text).num_atoms == 2
    assert_refused("data_x\n_cell_length_a 5\n", "no block has atoms")
