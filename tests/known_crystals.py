"""Well-known crystals in their conventional cells, atom by atom.

pymatgen's `Structure.from_spacegroup` takes half a second and more for each crystal.
"""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

_FACES = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    """Eight atoms, space group 225; `a` in Å."""
    return _two_face_centred(cation, anion, a, 0.5)


def zinc_blende(cation: str, anion: str, a: float) -> Structure:
    """Eight atoms, space group 216; `a` in Å."""
    return _two_face_centred(cation, anion, a, 0.25)


def rutile(a: float, c: float) -> Structure:
    """TiO2, six atoms, space group 136; `a` and `c` in Å."""
    u, v = 0.305, 0.195
    titanium = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    oxygen = [[u, u, 0.0], [1 - u, 1 - u, 0.0], [v, 1 - v, 0.5], [1 - v, v, 0.5]]
    return Structure(Lattice.tetragonal(a, c), ["Ti"] * 2 + ["O"] * 4, [*titanium, *oxygen])


def _two_face_centred(first: str, second: str, a: float, shift: float) -> Structure:
    """Two face-centred lattices, the second moved along the diagonal of the cube."""
    coords = np.concatenate([_FACES, (_FACES + shift) % 1.0])
    return Structure(Lattice.cubic(a), [first] * 4 + [second] * 4, coords)
