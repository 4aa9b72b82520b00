"""Labels of a crystal's symmetry: Wyckoff letters, site symmetries, and a prototype without its elements.

Labels are made for crystals of any origin, samples of a model among them. spglib symmetrises a crystal first: at
generous tolerances moyopy's search may never end on such (`data/properties.py`), at the tight one that is left it does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from math import gcd

import numpy as np

from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import symmetry_dataset
from latentite.elements import SYMBOLS
from latentite.symmetry.cells import FAMILIES, family_of_number
from latentite.symmetry.descriptions import Orbits
from latentite.symmetry.encode import EncodingError, encode
from latentite.symmetry.normalizers import normalizer
from latentite.symmetry.positions import space_group, wyckoff_table

_TIGHT = 1e-3
"""Å; tolerance at which a symmetrised crystal has all of its symmetry."""
_FAMILY_LETTERS = dict(zip(FAMILIES, "amothc", strict=True))
"""Of Pearson symbols."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SymmetryLabel:
    """A crystal but for its free coordinates and its cell."""

    wyckoff: str
    """Letters of the orbits with their counts, such as `a 2c`."""
    site_symmetry: str
    """Of these letters in their order, such as `m-3m .3m`."""
    prototype: str
    """Anonymous formula, Pearson symbol, space group and letters of each anonymous element, as AFLOW writes it:
    rock salt is `AB_cF8_225_a_b`. Elements with the same amount come in the order of their letters."""
    decorated: str
    """Space group, and letters with their elements in the canonical description, such as `225 a:Na b:Cl`."""


def symmetry_label(crystal: CrystalArrays, *, symprec: float) -> tuple[int | None, SymmetryLabel | str]:
    """Space group by spglib, and the labels of a crystal, or the reason why it has none.

    Args:
        crystal: of any origin.
        symprec: Å; how far an atom may be from its symmetric place.
    """
    dataset = symmetry_dataset(crystal.atomic_numbers, crystal.frac_coords, crystal.lattice, symprec=symprec)
    if dataset is None:
        return None, f"no space group was found at {symprec:g} Å"
    number = int(dataset.number)
    symmetrised = CrystalArrays(
        np.asarray(dataset.std_types), np.asarray(dataset.std_positions), np.asarray(dataset.std_lattice)
    )
    try:
        orbits = encode(symmetrised, symprec=_TIGHT)
    except EncodingError as error:
        return number, str(error)
    if orbits.space_group != number:
        return number, f"symmetrised in space group {number}, it has space group {orbits.space_group}"
    return number, label_of(orbits)


def label_of(orbits: Orbits) -> SymmetryLabel:
    """The labels of a crystal in its canonical description."""
    table = wyckoff_table()
    letters = [table.letter[position] for position in orbits.position]
    counts = Counter(orbits.position.tolist())
    sites = [f"{letter}:{SYMBOLS[z - 1]}" for letter, z in zip(letters, orbits.element.tolist(), strict=True)]
    return SymmetryLabel(
        wyckoff=" ".join(_with_count(table.letter[position], count) for position, count in counts.items()),
        site_symmetry=" ".join(table.site_symmetry[position] for position in counts),
        prototype=prototype_of(orbits),
        decorated=" ".join([str(orbits.space_group), *sites]),
    )


def prototype_of(orbits: Orbits) -> str:
    """The label of a crystal's prototype.

    It is the same for all crystals that differ by elements, free coordinates and cell alone: of the descriptions that
    the normalizer makes, the one with the smallest letters counts, whatever the elements.
    """
    table, number = wyckoff_table(), orbits.space_group
    elements = np.unique(orbits.element)
    amounts = [int(table.num_images[orbits.position[orbits.element == z]].sum()) for z in elements]
    divisor = reduce(gcd, amounts)
    first = int(table.first[number])
    best: tuple[list[int], list[tuple[int, list[int]]]] | None = None
    for target in normalizer(number).target[:, orbits.position - first]:
        species = sorted(
            (amount // divisor, sorted(target[orbits.element == z].tolist()))
            for z, amount in zip(elements, amounts, strict=True)
        )
        candidate = (sorted(target.tolist()), species)
        best = candidate if best is None else min(best, candidate)
    assert best is not None
    formula, letters = "", []
    for name, (amount, positions) in zip(_names(len(elements)), best[1], strict=True):
        formula += name + (str(amount) if amount > 1 else "")
        runs = [(table.letter[place], len(list(run))) for place, run in groupby(positions)]
        letters.append("".join(_with_count(letter, count) for letter, count in runs))
    return "_".join([formula, _pearson(orbits), str(number), *letters])


def _names(count: int) -> list[str]:
    """Names of anonymous elements: A to Z, then A1 to Z1, ..."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [alphabet[k % 26] + (str(k // 26) if k >= 26 else "") for k in range(count)]


def _with_count(letter: str, count: int) -> str:
    return letter if count == 1 else f"{count}{letter}"


def _pearson(orbits: Orbits) -> str:
    """Family, centring and atoms of the cell (the conventional one; the primitive one of rhombohedral groups)."""
    table, centring = wyckoff_table(), space_group(orbits.space_group).symbol[0]
    per_orbit = table.num_images if centring == "R" else table.multiplicity
    family = _FAMILY_LETTERS[FAMILIES[family_of_number(orbits.space_group)]]
    return f"{family}{centring.replace('A', 'C')}{int(per_orbit[orbits.position].sum())}"
