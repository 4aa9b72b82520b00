"""Formulas: parsed, reduced, and written in the few ways in use. Imports neither torch nor, until asked, pymatgen."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from latentite.elements import ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS, symbol_of

if TYPE_CHECKING:
    from latentite.crystal import CrystalBatch

Composition = tuple[tuple[int, int], ...]
"""Atomic numbers and whole amounts of one formula unit, by atomic number: `((8, 1), (12, 1))` for MgO."""

_PART = re.compile(r"([A-Z][a-z]?)[0-9.]*|[()\[\]][0-9.]*")


# ---------------------------------------------------------------------------------------- reduced


def reduced(counts: Mapping[int, int]) -> Composition:
    """The smallest whole amounts in the same ratio.

    Raises:
        ValueError: for no atoms.
    """
    if not counts:
        raise ValueError("a composition needs at least one element, got none")
    divisor = reduce(gcd, counts.values())
    return tuple((number, amount // divisor) for number, amount in sorted(counts.items()))


def reduced_composition(atomic_numbers: Sequence[int]) -> Composition:
    """The reduced composition of a list of atoms.

    Raises:
        ValueError: for no atoms.
    """
    return reduced(Counter(atomic_numbers))


def compositions(crystals: CrystalBatch) -> list[Composition]:
    """Of each crystal, reduced."""
    width = NUM_ELEMENTS + 1
    cells = (crystals.crystal_index * width + crystals.atomic_numbers).cpu().numpy()
    unique_cells, amounts = np.unique(cells, return_counts=True)
    counts: list[dict[int, int]] = [{} for _ in range(len(crystals))]
    for cell, amount in zip(unique_cells.tolist(), amounts.tolist(), strict=True):
        counts[cell // width][cell % width] = amount
    return [reduced(count) for count in counts]


def whole_amounts(counts: Mapping[int, float]) -> Composition:
    """A reduced composition of amounts that need not be whole; fractions such as 0.5 are multiplied up.

    Raises:
        ValueError: for amounts that are no fractions of small whole numbers.
    """
    for factor in (1, 2, 3, 4, 5, 6, 8, 10, 12, 100, 1000, 10_000):
        whole = {number: round(amount * factor) for number, amount in counts.items()}
        if all(abs(amount * factor - whole[n]) < 1e-6 * factor and whole[n] for n, amount in counts.items()):
            return reduced(whole)
    raise ValueError(f"amounts of atoms must be fractions of small whole numbers, got {counts}")


# ---------------------------------------------------------------------------------------- parsed


def parse_amounts(formula: object) -> dict[str, float]:
    """Amounts by symbol, as they are written: `{"Ca": 1.0, "O": 2.0, "H": 2.0}` for `Ca(OH)2`.

    Args:
        formula: whatever pymatgen takes for a composition: a text, or amounts by symbol.

    Raises:
        ValueError: for what is no formula. An unknown symbol is pymatgen's dummy, and the caller's to refuse.
    """
    from pymatgen.core import Composition as PymatgenComposition

    try:
        amounts = PymatgenComposition(formula).get_el_amt_dict()
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"a formula such as LiFePO4 was expected, got {formula!r} ({error})") from error
    return {str(symbol): float(amount) for symbol, amount in amounts.items()}


def parse_formula(text: str) -> Composition:
    """Reduced composition of a formula such as `Nd(Mo3Se4)2`.

    Raises:
        ValueError: for what is no formula.
    """
    amounts = parse_amounts(text)
    if unknown := [symbol for symbol in amounts if symbol not in ATOMIC_NUMBER]:
        raise ValueError(
            f"a formula such as LiFePO4 was expected, got {text!r} ({unknown[0]!r} is no element)"
        )
    return whole_amounts({ATOMIC_NUMBER[symbol]: amount for symbol, amount in amounts.items()})


def is_formula(text: str) -> bool:
    """True if a text consists of symbols of elements, amounts and brackets, as `NaN` and `InF` do."""
    rest, symbols = _PART.sub("", text), [symbol for symbol in _PART.findall(text) if symbol]
    return not rest and bool(symbols) and all(symbol in ATOMIC_NUMBER for symbol in symbols)


# ---------------------------------------------------------------------------------------- written


def join_amounts(amounts: Iterable[tuple[str, int]]) -> str:
    """Symbols and amounts in the order given, 1 left out: `Li2O`."""
    return "".join(symbol + (str(amount) if amount > 1 else "") for symbol, amount in amounts)


def plain_formula(composition: Composition) -> str:
    """By atomic number, every amount written: `O1Mg1`. For keys and files, which pymatgen's taste must not change."""
    return "".join(f"{SYMBOLS[number - 1]}{amount}" for number, amount in composition)


def alphabetical_formula(composition: Composition) -> str:
    """The elements in alphabetical order: `FeLiO2`."""
    return join_amounts(sorted((SYMBOLS[number - 1], amount) for number, amount in composition))


@lru_cache(maxsize=1 << 16)
def usual_formula(composition: Composition) -> str:
    """Electropositive elements first, as chemists and pymatgen write it: `LiFePO4`, and `O2` for oxygen.

    Raises:
        ValueError: for an atomic number that is no element.
    """
    from pymatgen.core import Composition as PymatgenComposition

    amounts = {symbol_of(number): amount for number, amount in composition}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # noble gases have no electronegativity; the order is only taste
        return PymatgenComposition(amounts).reduced_formula


def reduced_formulas(crystals: CrystalBatch) -> list[str]:
    """Reduced formula of each crystal in the usual order."""
    return [usual_formula(composition) for composition in compositions(crystals)]


def chemical_system(composition: Composition) -> str:
    """Symbols in alphabetical order: `Fe-Li-O`."""
    return "-".join(sorted(SYMBOLS[number - 1] for number, _ in composition))
