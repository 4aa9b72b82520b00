"""A handful of real crystals."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from known_crystals import rock_salt
from latentite.crystal import CrystalBatch


@pytest.fixture(scope="session")
def structures() -> list[Structure]:
    """NaCl, MgO, iron, an oxygen-rich nonsense, and NaCl again in another cell."""
    iron = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    nonsense = Structure(
        Lattice.from_parameters(4.0, 4.4, 5.1, 80, 95, 101),
        ["Na", "O", "O"],
        [[0, 0, 0], [0.4, 0.5, 0.1], [0.6, 0.1, 0.5]],
    )
    salt = rock_salt("Na", "Cl", 5.64)
    return [salt, rock_salt("Mg", "O", 4.21), iron, nonsense, salt.get_primitive_structure()]


@pytest.fixture(scope="session")
def crystals(structures: list[Structure]) -> CrystalBatch:
    return CrystalBatch.from_structures(structures)
