"""The symmetry that a CIF states, as the sets of operations that it can mean.

A file names its space group in up to six ways and may list the operations. Listed operations decide. Without them
the names are looked up, and each setting that all of them allow and that fits the cell is one reading; `cif_crystal.py`
chooses between several by the atoms. Symmetry that is named but not understood is refused, never taken as P1: that is
only what the file calls so, or a file that says nothing at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from latentite.data.readers.cif_text import MISSING, Block
from latentite.data.readers.space_groups import (
    IDENTITY,
    Operations,
    Setting,
    with_choice,
    with_hall_symbol,
    with_number,
    with_schoenflies_symbol,
)
from latentite.data.readers.space_groups import named as with_hermann_mauguin_symbol

_GROUP = ("_symmetry_", "_space_group_")
_LISTED = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_MAGNETIC = ("_space_group_symop_magn_operation_xyz", "_space_group_symop_magn_centering_xyz")
_MODULATED = ("_cell_modulation_dimension", "_cell_wave_vector", "_space_group_ssg")
_SILENT = re.compile(
    r"_id\Z|_equiv_pos_site|cell_setting|crystal_system|bravais|laue|patterson|point_group|centring|multiplicity|_symop_sg_id"
)
"""Tags of symmetry that name no group; with them alone only a triclinic crystal is P1."""
_SYSTEMS = ("_symmetry_cell_setting", "_space_group_crystal_system")


@dataclass(frozen=True, kw_only=True, slots=True)
class Symmetry:
    """The operations that a file can mean."""

    readings: tuple[Operations, ...]
    """One, or several where the origin or the axes are open."""
    said: str
    """Its name in the file, for messages."""
    doubt: str = ""
    """Reason for which formula and Z must confirm it; empty where nothing speaks against it."""


def read_symmetry(block: Block, lattice: Float[np.ndarray, "3 3"]) -> Symmetry:
    """The symmetry of a block.

    Raises:
        ValueError: where it is named but not understood, contradicts itself or does not fit the cell (row vectors, Å).
    """
    _refuse_modulated(block)
    said = _claims(block)
    listed = _listed_operations(block)
    if listed is None:
        return _from_names(block, said, lattice)
    if not listed.fits(lattice):
        raise ValueError(
            f"its {len(listed)} symmetry operations do not fit the cell: it is not as they would leave it"
        )
    words = _quoted(said) or f"{len(listed)} operations"
    return Symmetry(readings=(listed,), said=words, doubt=_doubt(block, listed, said))


def _refuse_modulated(block: Block) -> None:
    for tag in block.values:
        if tag.startswith(_MODULATED) and block.column(tag) and set(block.column(tag)) - MISSING - {"0"}:
            raise ValueError(f"a modulated structure ({tag}): it is not periodic in three dimensions")


def _claims(block: Block) -> dict[str, frozenset[Setting]]:
    """Everything by which the block names its group, as it stands there, and the settings that it can mean."""
    claims: dict[str, frozenset[Setting]] = {}
    for tag in block.values:
        if not tag.startswith(_GROUP) or tag in _LISTED or tag.startswith("_space_group_symop_"):
            continue
        if _SILENT.search(tag) or (text := block.text(tag)) is None:
            continue
        claims[f"{tag} {text!r}"] = _settings_of(tag, text)
    return claims


def _settings_of(tag: str, text: str) -> frozenset[Setting]:
    if "hall" in tag:
        return with_hall_symbol(text)
    if "schoenflies" in tag:
        return with_schoenflies_symbol(text)
    if tag.endswith("_number") and "magn" not in tag:
        return with_number(int(text)) if text.isascii() and text.isdigit() else frozenset()
    if tag.endswith("_coordinate_system_code"):
        return with_choice(text)
    if re.search(r"name_h[-_]?m|international", tag):
        return with_hermann_mauguin_symbol(text)
    return frozenset()


def _from_names(block: Block, said: dict[str, frozenset[Setting]], lattice: np.ndarray) -> Symmetry:
    words = _quoted(said)
    if not said:
        system = next((text for tag in _SYSTEMS if (text := block.text(tag))), "triclinic")
        if system.lower() != "triclinic":
            raise ValueError(
                f"it is called {system} but names neither a space group nor symmetry operations; add one"
            )
        return Symmetry(readings=(IDENTITY,), said="no symmetry")
    unknown = [claim for claim, settings in said.items() if not settings]
    if unknown:
        raise ValueError(
            f"the symmetry {', '.join(unknown)} is not understood; give a symbol of the International Tables or list "
            "the operations (_space_group_symop_operation_xyz)"
        )
    settings = _common(said)
    if not settings:
        raise ValueError(f"its symmetry is given in two ways that contradict each other: {words}")
    fitting = [setting for setting in settings if setting.operations().fits(lattice)]
    if not fitting:
        raise ValueError(
            f"the symmetry {words} does not fit the cell: its lengths or angles are not as it needs them"
        )
    readings: dict[bytes, Operations] = {}
    for setting in _by_convention(fitting):
        operations = setting.operations()
        readings.setdefault(np.sort(operations.keys()).tobytes(), operations)
    return Symmetry(readings=tuple(readings.values()), said=words)


def _quoted(said: dict[str, frozenset[Setting]]) -> str:
    """The names as they stand in the file, each once."""
    return ", ".join(dict.fromkeys(claim.partition(" ")[2] for claim in said))


def _common(said: dict[str, frozenset[Setting]]) -> list[Setting]:
    """Settings that all claims allow. A number knows no axes: it only has to be that of what the symbols say."""
    symbols = [
        settings for claim, settings in said.items() if "number" not in claim and "schoenflies" not in claim
    ]
    numbers = [{one.number for one in settings} for claim, settings in said.items()]
    common = frozenset.intersection(*(symbols or list(said.values())))
    shared = set.intersection(*numbers)
    return sorted((one for one in common if one.number in shared), key=lambda one: one.hall_number)


def _by_convention(settings: list[Setting]) -> list[Setting]:
    """Of monoclinic settings that differ in their axis, the first: axis b, as a short symbol means it."""
    return settings[:1] if 3 <= settings[0].number <= 15 else settings


def _listed_operations(block: Block) -> Operations | None:
    magnetic, centring = (tuple(block.column(tag)) for tag in _MAGNETIC)
    if magnetic:
        return _group_of(magnetic, centring or ("x,y,z",), is_magnetic=True)
    if any("magn" in tag for tag in block.values if tag.startswith("_space_group_")):
        raise ValueError("a magnetic space group is named and its operations are not listed; list them")
    lists = [tuple(text for text in block.column(tag) if text not in MISSING) for tag in _LISTED]
    groups = [_group_of(texts, ("x,y,z",), is_magnetic=False) for texts in lists if texts]
    if len(groups) == 2 and groups[0].keys().tolist() != groups[1].keys().tolist():
        raise ValueError(f"its symmetry operations are listed twice ({' and '.join(_LISTED)}), and differ")
    return groups[0] if groups else None


@lru_cache(maxsize=256)
def _group_of(listed: tuple[str, ...], centring: tuple[str, ...], *, is_magnetic: bool) -> Operations:
    """The group of the operations that a file lists; many files of a folder list the same."""
    operations = [parse_operation(text, is_magnetic=is_magnetic) for text in listed]
    shifts = [parse_operation(text, is_magnetic=is_magnetic) for text in centring]
    pairs = [
        (turn @ rotation, turn @ moved + shift) for turn, shift in shifts for rotation, moved in operations
    ]
    group = Operations.on_grid(np.array([one[0] for one in pairs]), np.array([one[1] for one in pairs]))
    if not group.is_group():
        raise ValueError(
            f"its {len(group)} symmetry operations are not a group (one is missing or damaged); give all of them"
        )
    return group


_TERM = re.compile(r"([+-]?)(?:(\d+)/([1-9]\d*)|(\d+\.?\d*|\.\d+))?\*?([xyz]?)")


def parse_operation(text: str, *, is_magnetic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [3 3] and translation [3] of an operation such as `-y+1/2, x, z`; a time reversal is left out.

    Raises:
        ValueError: for anything else.
    """
    wrong = ValueError(f"the symmetry operation {text!r} is not understood; write it as in 'x, -y+1/2, z'")
    parts = re.sub(r"[\s'\"]", "", text).lower().split(",")
    if is_magnetic and parts[3:] in (["+1"], ["-1"], ["1"]):
        del parts[3]
    if len(parts) != 3 or not all(parts):
        raise wrong
    rotation, translation = np.zeros((3, 3)), np.zeros(3)
    for axis, part in enumerate(parts):
        terms = re.findall(r"[+-]?[^+-]+", part)
        for term in terms:
            match = _TERM.fullmatch(term)
            if match is None or term in ("+", "-") or "".join(terms) != part:
                raise wrong
            sign, over, under, decimal, variable = match.groups()
            value = int(over) / int(under) if over else float(decimal or 1.0)
            value = -value if sign == "-" else value
            if variable:
                rotation[axis, "xyz".index(variable)] += value
            else:
                translation[axis] += value
    if not np.array_equal(rotation, np.rint(rotation)) or round(abs(np.linalg.det(rotation)), 6) != 1.0:
        raise ValueError(f"the symmetry operation {text!r} is none: it must turn the cell into itself")
    return np.rint(rotation).astype(np.int64), translation


def _doubt(block: Block, listed: Operations, said: dict[str, frozenset[Setting]]) -> str:
    """Reason to doubt the listed operations; empty where all that the block says agrees with them."""
    if not said:
        return ""
    number = listed.group_number()
    magnetic = any(block.column(tag) for tag in _MAGNETIC)
    disagreeing = [
        claim
        for claim, settings in said.items()
        if (settings and number is not None and number not in {one.number for one in settings})
        or (not settings and listed.is_identity)
    ]
    if magnetic or not disagreeing:
        return ""
    return f"the operations listed are those of space group {number}, while the file says {', '.join(disagreeing)}"
