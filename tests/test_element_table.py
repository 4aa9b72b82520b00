"""The table of elements, against the libraries' own."""

from __future__ import annotations

import ase.data
from pymatgen.core import Element

from latentite.elements import ATOMIC_NUMBER, NUM_ELEMENTS, SYMBOLS, symbol_of


def test_symbols_are_those_of_pymatgen_and_ase() -> None:
    assert NUM_ELEMENTS == 118
    assert [Element.from_Z(number).symbol for number in range(1, NUM_ELEMENTS + 1)] == list(SYMBOLS)
    assert ase.data.chemical_symbols[1:] == list(SYMBOLS)
    assert ATOMIC_NUMBER["Fe"] == 26


def test_what_is_no_element_has_no_symbol_of_another() -> None:
    """`SYMBOLS[0 - 1]` would be oganesson."""
    assert [symbol_of(number) for number in (1, 118)] == ["H", "Og"]
    assert [symbol_of(number) for number in (0, -1, 119)] == [f"atomic number {n}" for n in (0, -1, 119)]
