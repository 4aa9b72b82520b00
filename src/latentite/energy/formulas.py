"""Compositions as keys: whole amounts of one formula unit, from crystals and from formulas.

Comes before `hull.py` and `references.py`.
"""

from __future__ import annotations

from functools import reduce
from math import gcd

import numpy as np

from latentite.crystal import CrystalBatch
from latentite.elements import ATOMIC_NUMBER, SYMBOLS

Composition = tuple[tuple[int, int], ...]
"""Atomic numbers and whole amounts of one formula unit, by atomic number: `((8, 1), (12, 1))` for MgO."""


def compositions(crystals: CrystalBatch) -> list[Composition]:
    """Of each crystal, reduced."""
    width = len(SYMBOLS) + 1
    cells = (crystals.crystal_index * width + crystals.atomic_numbers).cpu().numpy()
    found, amounts = np.unique(cells, return_counts=True)
    counts: list[dict[int, int]] = [{} for _ in range(len(crystals))]
    for cell, amount in zip(found.tolist(), amounts.tolist(), strict=True):
        counts[cell // width][cell % width] = amount
    return [reduced(count) for count in counts]


def reduced(counts: dict[int, int]) -> Composition:
    """The smallest whole amounts in the same ratio.

    Raises:
        ValueError: for no atoms.
    """
    if not counts:
        raise ValueError("a composition needs at least one element, got none")
    divisor = reduce(gcd, counts.values())
    return tuple((number, amount // divisor) for number, amount in sorted(counts.items()))


def parse_formula(text: str) -> Composition:
    """Reduced composition of a formula such as `Nd(Mo3Se4)2`.

    Raises:
        ValueError: for what is no formula.
    """
    from pymatgen.core import Composition as PymatgenComposition

    try:
        parsed = PymatgenComposition(text)
        counts = {ATOMIC_NUMBER[element.symbol]: float(amount) for element, amount in parsed.items()}
    except (ValueError, KeyError) as error:  # pymatgen reads an unknown symbol as a dummy
        raise ValueError(f"a formula such as LiFePO4 was expected, got {text!r} ({error})") from error
    return whole_amounts(counts)


def formula(composition: Composition) -> str:
    """Plain text, by atomic number: `O1Mg1`."""
    return "".join(f"{SYMBOLS[number - 1]}{amount}" for number, amount in composition)


def whole_amounts(counts: dict[int, float]) -> Composition:
    """A reduced composition of amounts that need not be whole; fractions such as 0.5 are multiplied up.

    Raises:
        ValueError: for amounts that are no fractions of small whole numbers.
    """
    for factor in (1, 2, 3, 4, 5, 6, 8, 10, 12, 100, 1000, 10_000):
        whole = {number: round(amount * factor) for number, amount in counts.items()}
        if all(abs(amount * factor - whole[n]) < 1e-6 * factor and whole[n] for n, amount in counts.items()):
            return reduced(whole)
    raise ValueError(f"amounts of atoms must be fractions of small whole numbers, got {counts}")
