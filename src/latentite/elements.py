"""The chemical elements: symbols, atomic numbers, and how many of them a table, a network or a vector knows."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_TABLE = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br
Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er
Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md
No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
SYMBOLS = tuple(_TABLE.split())
"""Element symbols; the atomic number is the position plus one."""

ATOMIC_NUMBER = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}

NUM_ELEMENTS = len(SYMBOLS)
"""All elements that have a symbol, 118. A table by atomic number has one row more: row 0 is no element."""

NUM_ELEMENT_CLASSES = 100
"""Classes of the networks: class z stands for atomic number z, class 0 for "unknown"."""

MAX_ATOMIC_NUMBER = NUM_ELEMENT_CLASSES - 1
"""The last element that has a class: einsteinium. Crystals with a heavier one are refused."""

COMPOSITION_WIDTH = 100
"""Length of a composition vector, which has no place for "unknown": hydrogen in column 0 to fermium."""


def symbol_of(atomic_number: int) -> str:
    """The symbol of an element, or `atomic number 0` and the like for what is none (in messages)."""
    if 1 <= atomic_number <= NUM_ELEMENTS:
        return SYMBOLS[atomic_number - 1]
    return f"atomic number {atomic_number}"


@cache
def covalent_radii() -> np.ndarray:
    """Covalent radii in Å by atomic number (Cordero et al. 2008, doi 10.1039/b801115j, by way of ASE), 1.6 where
    there is none; the one at 0 stands for no element."""
    import numpy as np  # here: who only wants symbols should not wait for it
    from ase.data import covalent_radii as known

    radii = np.full(NUM_ELEMENTS + 1, 1.6)
    radii[: len(known)] = known[: NUM_ELEMENTS + 1]
    radii[radii < 0.25] = 1.6
    return radii
