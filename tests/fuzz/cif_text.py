"""A CIF as its parts, written in any of the ways that the standard and its users know."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from fuzz.random_crystals import RandomCrystal, Setting, formula, operation_text

CELL = (
    "_cell_length_a",
    "_cell_length_b",
    "_cell_length_c",
    "_cell_angle_alpha",
    "_cell_angle_beta",
    "_cell_angle_gamma",
)
NAME_TAGS = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_space_group.name_H-M_ref",
    "_space_group.name_H-M_alt",
    "_space_group_name_H-M_full",
)
NUMBER_TAGS = ("_symmetry_Int_Tables_number", "_space_group_IT_number", "_space_group.IT_number")
HALL_TAGS = ("_symmetry_space_group_name_Hall", "_space_group_name_Hall", "_space_group.name_Hall")
OPERATION_TAGS = (
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
)


@dataclass(kw_only=True, slots=True)
class Loop:
    """A table."""

    tags: list[str]
    rows: list[list[str]]


@dataclass(kw_only=True, slots=True)
class CifText:
    """One block: single values, loops, and how they are laid out."""

    values: list[tuple[str, str]] = field(default_factory=list)
    operations: Loop | None = None
    sites: Loop
    name: str = "data_x"
    newline: str = "\n"
    blanks: str = " "
    """Between the values of a row."""

    def set(self, tag: str, value: str | None) -> None:
        """Gives a tag another value, or takes it out."""
        self.values = [(old, text) for old, text in self.values if old != tag]
        if value is not None:
            self.values.append((tag, value))

    def text(self) -> str:
        """The block as text."""
        lines = [self.name, *(f"{tag} {quoted(value)}" for tag, value in self.values)]
        for loop in (self.operations, self.sites):
            if loop is not None:
                lines += ["loop_", *(f" {tag}" for tag in loop.tags)]
                lines += [" " + self.blanks.join(map(quoted, row)) for row in loop.rows]
        return self.newline.join([*lines, ""])


def quoted(value: str) -> str:
    """As CIF wants it: quotes where there are blanks or a special first character."""
    if value.startswith(("\n;", "'", '"')):
        return value
    if value == "" or " " in value or value[:1] in "_#$[];":
        return f'"{value}"' if "'" in value else f"'{value}'"
    return value


def written(crystal: RandomCrystal, chance: random.Random) -> CifText:
    """The crystal as a CIF of its asymmetric unit; the symmetry is told in one of many right ways."""
    digits = chance.choice((4, 5, 5, 6))
    tags = ["_atom_site_label", "_atom_site_type_symbol"]
    tags += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    rows = []
    for number, site in enumerate(crystal.sites, start=1):
        rows.append([f"{site.symbol}{number}", site.symbol, *(f"{x:.{digits}f}" for x in site.position)])
    sites = Loop(tags=tags, rows=rows)
    if chance.random() < 0.6:
        _add_column(sites, "_atom_site_occupancy", lambda row: chance.choice(("1", "1.0", "1.00")))
    if chance.random() < 0.3:
        multiplicities = iter([site.multiplicity for site in crystal.sites])
        _add_column(sites, "_atom_site_symmetry_multiplicity", lambda row: str(next(multiplicities)))
    if chance.random() < 0.3:
        _add_column(sites, "_atom_site_U_iso_or_equiv", lambda row: chance.choice(("0.0051(3)", "?", ".")))
    if chance.random() < 0.2 and len({row[1] for row in rows}) == len(rows):
        _drop_column(sites, "_atom_site_type_symbol")
    cif = CifText(sites=sites)
    for tag, value in zip(CELL, (*crystal.lengths, *crystal.angles), strict=True):
        cif.set(tag, f"{value:.5f}" if "length" in tag else f"{value:.4f}")
    if chance.random() < 0.7:
        add_formula(cif, crystal, chance)
    tell_symmetry(cif, crystal, chance)
    return cif


def add_formula(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    """The formula of one unit and, as a rule, the number of units in the cell."""
    counts, units = formula(crystal)
    is_whole_cell = units > 1 and chance.random() < 0.15
    factor = units if is_whole_cell else 1
    cif.set(
        "_chemical_formula_sum", " ".join(f"{symbol}{count * factor}" for symbol, count in counts.items())
    )
    if chance.random() < 0.8:
        cif.set("_cell_formula_units_Z", str(1 if is_whole_cell else units))


def tell_symmetry(cif: CifText, crystal: RandomCrystal, chance: random.Random) -> None:
    """Name, number, Hall symbol, operations, or several of them; whatever is told is true."""
    group = crystal.setting
    told = chance.choice(
        ("operations", "name", "name and operations", "hall", "number", "hall and number", "all")
    )
    if told == "number" and not group.is_standard:
        told = "operations"
    if "operations" in told or told == "all":
        cif.operations = operation_loop(group, chance)
    if "name" in told or told == "all":
        cif.set(chance.choice(NAME_TAGS), name_of(group, chance))
    if "number" in told or told == "all":
        cif.set(chance.choice(NUMBER_TAGS), str(group.number))
    if "hall" in told or told == "all":
        cif.set(chance.choice(HALL_TAGS), group.hall_symbol)


def name_of(group: Setting, chance: random.Random) -> str:
    """A Hermann-Mauguin symbol that means this setting, spelt as people spell it."""
    name = group.short if group.is_standard and chance.random() < 0.7 else group.full
    if group.choice in ("b", "b1") and name == group.short and chance.random() < 0.5:
        name = group.full
    if group.choice in ("1", "2", "H", "R") and chance.random() < 0.7:
        letter = {"1": "S", "2": "Z"}.get(group.choice, group.choice)
        name += chance.choice((f" :{group.choice}", f":{group.choice}", f" {letter}"))
    style = chance.random()
    if style < 0.2:
        return name.replace(" ", "")
    if style < 0.3:
        return name.lower()
    if style < 0.4:
        return name.replace(" ", "").upper()
    if style < 0.45:
        return name.replace(" ", "_")
    return name


def operation_loop(group: Setting, chance: random.Random) -> Loop:
    """All operations, in any order and spelling."""
    operations = list(zip(group.rotations, group.translations, strict=True))
    if chance.random() < 0.5:
        first, *others = operations
        chance.shuffle(others)
        operations = [first, *others]
    style = chance.choice(("plain", "blanks", "upper", "decimals", "plus", "front"))
    rows = [[_spelt(operation_text(*operation), style)] for operation in operations]
    loop = Loop(tags=[chance.choice(OPERATION_TAGS)], rows=rows)
    if chance.random() < 0.4:
        loop.tags.insert(
            0, "_space_group_symop_id" if "symop" in loop.tags[0] else "_symmetry_equiv_pos_site_id"
        )
        loop.rows = [[str(number), *row] for number, row in enumerate(loop.rows, start=1)]
    return loop


def _spelt(text: str, style: str) -> str:
    parts = text.split(",")
    if style == "blanks":
        return ", ".join(parts)
    if style == "upper":
        return text.upper()
    if style == "decimals":
        return text.replace("1/2", "0.5").replace("1/4", "0.25").replace("3/4", ".75")
    if style == "plus":
        return ",".join(part if part.startswith("-") else f"+{part}" for part in parts)
    if style == "front":
        return ",".join(_shift_first(part) for part in parts)
    return text


def _shift_first(part: str) -> str:
    if "/" not in part:
        return part
    head, _, shift = part.rpartition("+")
    return shift + (head if head.startswith("-") else f"+{head}")


def _add_column(loop: Loop, tag: str, cell: object) -> None:
    loop.tags.append(tag)
    for row in loop.rows:
        row.append(cell(row))  # type: ignore[operator]


def _drop_column(loop: Loop, tag: str) -> None:
    place = loop.tags.index(tag)
    del loop.tags[place]
    for row in loop.rows:
        del row[place]
