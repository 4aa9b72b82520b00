"""CIFs: right ones in unusual dress, wrong ones that contradict themselves, and damaged ones."""

from __future__ import annotations

import random
from collections.abc import Callable

from fuzz.case import ANY, Case
from fuzz.cif_text import CELL, HALL_TAGS, NAME_TAGS, NUMBER_TAGS, CifText, Loop, operation_loop, written
from fuzz.damage import damaged
from fuzz.random_crystals import RandomCrystal, formula, random_crystal, setting
from fuzz.told import told_by_cif

Change = Callable[[CifText, RandomCrystal, random.Random], str | None]
"""Changes the parts; gives the text where parts are not enough, else None."""

UNKNOWN_SPECIES = (
    "M1",
    "Ln",
    "X",
    "Va",
    "Vac",
    "Wat",
    "OH1",
    "NH4",
    "CN",
    "Et",
    "Q",
    "Fe/Co",
    "?",
    ".",
    "26",
    "R3",
)


def make(index: int, chance: random.Random) -> Case:
    """A crystal as a CIF, changed in one way."""
    crystal = random_crystal(chance)
    cif = written(crystal, chance)
    kinds = [(DRESS, 4), (DOUBT, 3), (CONTRADICTION, 3)]
    pick = chance.choices(
        [None, *(kind for kind, _ in kinds)], weights=[3, *(weight for _, weight in kinds)]
    )[0]
    case = Case(format="cif", index=index, kind="damaged bytes", source="x.cif", rows=1)
    if pick is None:
        content = damaged(cif.text().encode(), chance)
        case.files["x.cif"] = content
        case.shares, case.volume = told_by_cif(content) or (None, None)
        return case
    change = chance.choice(pick)
    changed = change(cif, crystal, chance)
    case.kind = change.__name__.strip("_").replace("_", " ")
    text = cif.text() if changed is None else changed
    case.files["x.cif"] = text.encode("utf-8", errors="surrogateescape")
    if pick is CONTRADICTION:
        case.refused = [ANY]
    else:
        case.crystals = {ANY: crystal.arrays}
    return case


# Right files in unusual dress: the crystal, or a refusal.


def _as_it_is(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    return


def _upper_case(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    cif.values = [(tag.upper(), value) for tag, value in cif.values]
    for loop in filter(None, (cif.operations, cif.sites)):
        loop.tags = [tag.upper() for tag in loop.tags]
    return cif.text().replace("data_", chance.choice(("DATA_", "Data_"))).replace("loop_", "LOOP_")


def _other_lines(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    text = cif.text()
    change = chance.choice(("\r\n", "\r", "tabs", "bom", "utf-16", "blank", "latin", "end"))
    if change in ("\r\n", "\r"):
        return text.replace("\n", change)
    if change == "tabs":
        return text.replace(" ", "\t")
    if change == "bom":
        return "\ufeff" + text
    if change == "utf-16":
        return text.encode("utf-16").decode("utf-8", errors="surrogateescape")
    if change == "blank":
        return "\n\n" + text.replace("\n", "\n\n")
    if change == "latin":
        return "# Na\udcefve, 5 \udcc5\n" + text
    return text + "#END\n\n"


def _comments(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    lines = cif.text().split("\n")
    for _ in range(chance.randint(1, 5)):
        lines.insert(
            chance.randint(0, len(lines)),
            chance.choice(("# loop_", "#data_y", "   # _cell_length_a 9.9", "#")),
        )
    return "\n".join(lines)


def _text_field(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    inside = chance.choice(
        (
            "data_y",
            "loop_\n_atom_site_label\nXx1",
            "_cell_length_a 9.9",
            "it's a 'text'",
            "_atom_site_fract_x 0.3",
            "",
        )
    )
    tag = chance.choice(("_publ_section_comment", "_exptl_special_details", "_journal_name_full"))
    cif.values.insert(chance.randint(0, len(cif.values)), (tag, f"\n;{inside}\n;"))


def _other_order(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    chance.shuffle(cif.values)
    order = list(range(len(cif.sites.tags)))
    chance.shuffle(order)
    cif.sites.tags = [cif.sites.tags[place] for place in order]
    cif.sites.rows = [[row[place] for place in order] for row in cif.sites.rows]
    chance.shuffle(cif.sites.rows)
    if chance.random() < 0.5 and cif.operations is not None:
        cif.operations, cif.sites = cif.sites, cif.operations


def _uncertainties(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    cif.values = [
        (tag, f"{value}({chance.randint(1, 20)})" if tag in CELL else value) for tag, value in cif.values
    ]
    places = [place for place, tag in enumerate(cif.sites.tags) if "fract" in tag]
    for row in cif.sites.rows:
        for place in places:
            row[place] += chance.choice(("", "(2)", "(12)"))


def _other_positions(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    places = [place for place, tag in enumerate(cif.sites.tags) if "fract" in tag]
    for row in cif.sites.rows:
        for place in places:
            value = float(row[place]) + chance.choice((-1, 0, 0, 1))
            row[place] = chance.choice((f"{value:.5f}", f"{value:.5e}", f"{value:+.5f}"))


def _charges(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    if "_atom_site_type_symbol" in cif.sites.tags:
        place = cif.sites.tags.index("_atom_site_type_symbol")
        for row in cif.sites.rows:
            row[place] += chance.choice(("2+", "3+", "1-", "0+", "+2", "", "0"))


def _more_blocks(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    empty = chance.choice(
        ("data_global\n_journal_name_full 'J. Test'\n", "data_y\n_cell_length_a 9.9\n", "data_z\n")
    )
    return empty + cif.text() if chance.random() < 0.5 else cif.text() + empty


def _more_loops(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    labels = [row[0] for row in cif.sites.rows]
    aniso = "loop_\n_atom_site_aniso_label\n_atom_site_aniso_U_11\n" + "".join(
        f"{label} 0.01\n" for label in labels
    )
    types = "loop_\n_atom_type_symbol\n_atom_type_oxidation_number\n" + "".join(
        f"{site.symbol} 0\n" for site in crystal.sites
    )
    extra = chance.choice((aniso, types, aniso + types))
    return cif.text() + extra


def _in_p1(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    numbers, coords, _ = crystal.arrays
    del numbers
    symbols = [site.symbol for site in crystal.sites for _ in range(site.multiplicity)]
    rows = [
        [f"{symbol}{place}", symbol, *(f"{x:.6f}" for x in coord)]
        for place, (symbol, coord) in enumerate(zip(symbols, coords, strict=True))
    ]
    cif.sites = Loop(
        tags=["_atom_site_label", "_atom_site_type_symbol", *(f"_atom_site_fract_{axis}" for axis in "xyz")],
        rows=rows,
    )
    for tag in (*NAME_TAGS, *NUMBER_TAGS, *HALL_TAGS):
        cif.set(tag, None)
    cif.operations = None
    told = chance.choice(("nothing", "name", "number", "operation", "unlooped", "P1"))
    if told in ("name", "P1"):
        cif.set(NAME_TAGS[0], "P 1" if told == "name" else "P1")
    if told == "number":
        cif.set(NUMBER_TAGS[0], "1")
    if told == "operation":
        cif.operations = Loop(tags=["_symmetry_equiv_pos_as_xyz"], rows=[["x,y,z"]])
    if told == "unlooped":
        cif.set("_symmetry_equiv_pos_as_xyz", "x,y,z")


def _by_pymatgen(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.cif import CifWriter

    numbers, coords, lattice = crystal.arrays
    structure = Structure(Lattice(lattice), numbers, coords)
    symprec = chance.choice((None, None, 0.01))
    return str(CifWriter(structure, symprec=symprec, refine_struct=False))


# Files that are damaged in the words for symmetry: the crystal, or a refusal.


def _operation_missing(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _need_operations(cif, crystal, chance)
    assert cif.operations is not None
    if len(cif.operations.rows) > 1:
        del cif.operations.rows[chance.randrange(len(cif.operations.rows))]
    _must_have_formula(cif, crystal, chance)


def _operation_twice(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _need_operations(cif, crystal, chance)
    assert cif.operations is not None
    cif.operations.rows.append(list(chance.choice(cif.operations.rows)))


def _operation_garbled(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _need_operations(cif, crystal, chance)
    assert cif.operations is not None
    row = chance.choice(cif.operations.rows)
    text = row[-1]
    place = chance.randrange(len(text))
    row[-1] = text[:place] + chance.choice("abwq?;*") + text[place + 1 :]


def _name_garbled(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    for tag in (*NAME_TAGS, *NUMBER_TAGS, *HALL_TAGS):
        cif.set(tag, None)
    if chance.random() < 0.7:
        cif.operations = None
    name = crystal.setting.short
    place = chance.randrange(len(name))
    strange = chance.choice(("?x", "Q", " / ", "9", "%", "--", "é"))
    cif.set(chance.choice(NAME_TAGS), name[:place] + strange + name[place:])
    _must_have_formula(cif, crystal, chance)


def _symmetry_of_another_kind(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    for tag in (*NAME_TAGS, *NUMBER_TAGS, *HALL_TAGS):
        cif.set(tag, None)
    cif.operations = None
    tag, value = chance.choice(
        (
            ("_symmetry_space_group_name_H-M", "?"),
            ("_symmetry_space_group_name_H-M", "."),
            ("_space_group_IT_number", "?"),
            ("_space_group_IT_number", str(crystal.setting.number + 0.5)),
            ("_space_group_IT_number", "231"),
            ("_space_group_IT_number", "-1"),
            ("_symmetry_space_group_name_Hall", "-Q 1 2 3"),
            ("_space_group_ssg_name", f"{crystal.setting.short}(00g)"),
            ("_space_group_magn.name_BNS", f"{crystal.setting.short}'"),
            ("_space_group_symop_magn_operation.xyz", "x,y,z,+1"),
            ("_symmetry_cell_setting", "cubic"),
            ("_space_group_crystal_system", "cubic"),
            ("_symmetry_Int_Tables_number", "0"),
        )
    )
    cif.set(tag, value)
    _must_have_formula(cif, crystal, chance)


def _name_and_operations_differ(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _need_operations(cif, crystal, chance)
    for tag in (*NAME_TAGS, *NUMBER_TAGS, *HALL_TAGS):
        cif.set(tag, None)
    other = setting(chance.randint(1, 530))
    cif.set(chance.choice(NAME_TAGS), other.full)
    _must_have_formula(cif, crystal, chance)


def _tag_twice(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    tag, value = chance.choice([pair for pair in cif.values if pair[0] in CELL])
    cif.values.insert(chance.randint(0, len(cif.values)), (tag, f"{float(value) * 1.3:.4f}"))


def _other_units(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _, units = formula(crystal)
    _must_have_formula(cif, crystal, chance)
    cif.set(
        "_cell_formula_units_Z",
        chance.choice((str(units * 2), str(units + 1), "0", "-1", "?", "many", "1e9")),
    )


# Files that cannot be right: nothing but a refusal.


def _other_formula(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    counts, _ = formula(crystal)
    symbol = chance.choice(list(counts))
    change = chance.choice(("element", "number", "more"))
    if change == "number" and len(counts) > 1:
        counts[symbol] += 1
    elif change == "element":
        counts["U"] = counts.pop(symbol)
    else:
        counts["H"] = 1
    cif.set("_chemical_formula_sum", " ".join(f"{name}{count}" for name, count in counts.items()))
    cif.set("_cell_formula_units_Z", None)


def _site_missing(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    _must_have_formula(cif, crystal, chance)
    counts, _ = formula(crystal)
    place = chance.randrange(len(cif.sites.rows))
    del cif.sites.rows[place]
    kept = [site for number, site in enumerate(crystal.sites) if number != place]
    left = {symbol: sum(site.multiplicity for site in kept if site.symbol == symbol) for symbol in counts}
    ratios = {left[symbol] / count for symbol, count in counts.items()}
    if len(ratios) == 1 and ratios != {0.0}:  # the same formula: only Z can tell
        cif.set("_cell_formula_units_Z", str(formula(crystal)[1]))


def _occupancy(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    tag = "_atom_site_occupancy"
    if tag not in cif.sites.tags:
        cif.sites.tags.append(tag)
        cif.sites.rows = [[*row, "1"] for row in cif.sites.rows]
    chance.choice(cif.sites.rows)[cif.sites.tags.index(tag)] = chance.choice(
        ("0.5", "0", "0.0", "0.95", "0.5(1)", "-1", "2", "1/2", "0,5", "half")
    )


def _unknown_species(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    row = chance.choice(cif.sites.rows)
    name = chance.choice(UNKNOWN_SPECIES)
    row[0] = name
    if "_atom_site_type_symbol" in cif.sites.tags:
        row[cif.sites.tags.index("_atom_site_type_symbol")] = name


def _value_missing(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    if chance.random() < 0.4:
        cif.set(
            chance.choice(CELL), chance.choice((None, "?", ".", "abc", "0", "-5.6", "nan", "inf", "1e999"))
        )
        return
    place = chance.choice([place for place, tag in enumerate(cif.sites.tags) if "fract" in tag])
    chance.choice(cif.sites.rows)[place] = chance.choice(
        ("?", ".", "abc", "nan", "0.1.2", "1/0", "inf", "0,25")
    )


def _hydrogen_attached(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    cif.sites.tags.append("_atom_site_attached_hydrogens")
    cif.sites.rows = [[*row, "0"] for row in cif.sites.rows]
    chance.choice(cif.sites.rows)[-1] = chance.choice(("1", "2", "3"))


def _cut_row(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    del cif.sites.rows[-1][chance.randrange(1, len(cif.sites.tags)) :]


def _second_crystal(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> str:
    second = written(random_crystal(chance), chance)
    second.name = chance.choice(("data_y", "data_x"))
    text = second.text()
    if chance.random() < 0.3:
        text = text.replace("_cell_angle_beta", "_cell_angle_bet")
    return cif.text() + text if chance.random() < 0.5 else text + cif.text()


def _need_operations(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    if cif.operations is None:
        cif.operations = operation_loop(crystal.setting, chance)


def _must_have_formula(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    counts, units = formula(crystal)
    cif.set("_chemical_formula_sum", " ".join(f"{symbol}{count}" for symbol, count in counts.items()))
    cif.set("_cell_formula_units_Z", str(units))


DRESS: list[Change] = [
    _as_it_is,
    _upper_case,
    _other_lines,
    _comments,
    _text_field,
    _other_order,
    _uncertainties,
    _other_positions,
    _charges,
    _more_blocks,
    _more_loops,
    _in_p1,
    _by_pymatgen,
]
DOUBT: list[Change] = [
    _operation_missing,
    _operation_twice,
    _operation_garbled,
    _name_garbled,
    _symmetry_of_another_kind,
    _name_and_operations_differ,
    _tag_twice,
    _other_units,
]
CONTRADICTION: list[Change] = [
    _other_formula,
    _site_missing,
    _occupancy,
    _unknown_species,
    _value_missing,
    _hydrogen_attached,
    _cut_row,
    _second_crystal,
]
