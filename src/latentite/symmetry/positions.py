"""The table of Wyckoff positions: 230 space groups, 1,731 positions, 1,742 free coordinates.

`wyckoff.csv` (made by `tools/wyckoff_table.py` from moyopy's tables) has one representative of each position in the
standard setting of International Tables A: unique axis b, hexagonal axes, origin choice 2. A representative is an
affine map from the free coordinates u to a point, x = M u + c; the operations of the group, which moyopy knows, map it
to the other points of its orbit. Fractional coordinates are those of the conventional cell.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Bool, Float, Int

NUM_GROUPS = 230
MAX_IMAGES = 48
"""Points of the largest orbit in a primitive cell."""
MAX_POSITIONS = 27
"""Positions of the group that has most of them (47, P m m m: a to z, and A)."""
LETTERS = "abcdefghijklmnopqrstuvwxyzA"

_TERM = re.compile(r"([+-]?)(\d+(?:/\d+)?)?([xyz])?")

_PRIMITIVE = {
    "P": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "A": [[1, 0, 0], [0, 1 / 2, -1 / 2], [0, 1 / 2, 1 / 2]],
    "C": [[1 / 2, 1 / 2, 0], [-1 / 2, 1 / 2, 0], [0, 0, 1]],
    "I": [[-1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [1 / 2, 1 / 2, -1 / 2]],
    "F": [[0, 1 / 2, 1 / 2], [1 / 2, 0, 1 / 2], [1 / 2, 1 / 2, 0]],
    "R": [[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]],
}
"""Primitive basis vectors as rows, in units of the conventional ones (obverse setting for R)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SpaceGroup:
    """Operations of a group in its standard setting."""

    number: int
    symbol: str
    rotations: Int[np.ndarray, "operation 3 3"]
    translations: Float[np.ndarray, "operation 3"]
    """Those of the centring are operations, too."""
    primitive: Float[np.ndarray, "3 3"]
    """Primitive basis vectors as rows, in units of the conventional ones."""
    polar_axes: tuple[int, ...]
    """Axes along which the origin is free."""


@cache
def space_group(number: int) -> SpaceGroup:
    """A space group by its number, 1 to 230."""
    import moyopy

    setting = moyopy.Setting.standard()
    operations = moyopy.operations_from_number(number, setting=setting)
    rotations = np.array(operations.rotations)
    translations = np.round(np.array(operations.translations) * 24) / 24 % 1
    # Every polar direction of a standard setting is a sum of axes that are polar themselves.
    polar = np.flatnonzero((rotations == np.eye(3, dtype=int)).all(axis=(0, 1)))
    symbol = moyopy.SpaceGroupType(number).hm_short
    return SpaceGroup(
        number=number,
        symbol=symbol,
        rotations=rotations,
        translations=translations,
        primitive=np.array(_PRIMITIVE[symbol[0]], dtype=float),
        polar_axes=tuple(polar.tolist()),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WyckoffTable:
    """All positions, group after group, letters from `a` to the general position."""

    group: Int[np.ndarray, " position"]
    """Number of the space group."""
    letter: tuple[str, ...]
    site_symmetry: tuple[str, ...]
    multiplicity: Int[np.ndarray, " position"]
    """Points of an orbit in the conventional cell."""
    num_images: Int[np.ndarray, " position"]
    """Points of an orbit in a primitive cell."""
    num_free: Int[np.ndarray, " position"]
    """Free coordinates, 0 to 3."""
    free_axes: Int[np.ndarray, "position 3"]
    """For each free coordinate the axis on which it stands alone in the representative; -1 after the last."""
    matrix: Float[np.ndarray, "position 3 3"]
    """M of x = M u + c; columns after the last free coordinate are zero."""
    offset: Float[np.ndarray, "position 3"]
    """c of x = M u + c."""
    image_matrix: Float[np.ndarray, "position image 3 3"]
    """The same of all points of the orbit in a primitive cell (48 places, those after the last are zero)."""
    image_offset: Float[np.ndarray, "position image 3"]
    first: Int[np.ndarray, " group_from_0"]
    """First position of each group; the entry at 0 is not used."""
    count: Int[np.ndarray, " group_from_0"]
    """Positions of each group."""

    def __len__(self) -> int:
        return len(self.letter)

    @property
    def is_polar(self) -> Bool[np.ndarray, "position 3"]:
        """Free coordinates along an axis on which the origin is free."""
        polar = np.zeros((len(self), 3), dtype=bool)
        for index in range(len(self)):
            axes = space_group(int(self.group[index])).polar_axes
            polar[index] = [axis in axes for axis in self.free_axes[index]]
        return polar

    def index(self, group: int, letter: str) -> int:
        """Place of a position in the table.

        Raises:
            ValueError: when the group has no such letter.
        """
        first, count = int(self.first[group]), int(self.count[group])
        letters = self.letter[first : first + count]
        if letter not in letters:
            raise ValueError(
                f"Wyckoff letter of space group {group} must be one of {''.join(letters)}, got {letter!r}"
            )
        return first + letters.index(letter)


def read_coordinates(text: str) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]:
    """M and c of coordinates such as `x,2x,1/4`, columns of M for x, y and z."""
    matrix, offset = np.zeros((3, 3)), np.zeros(3)
    for row, part in enumerate(text.replace(" ", "").split(",")):
        for sign, number, variable in _TERM.findall(part):
            if not number and not variable:
                continue
            value = (-1 if sign == "-" else 1) * float(Fraction(number or "1"))
            if variable:
                matrix[row, "xyz".index(variable)] += value
            else:
                offset[row] += value
    return matrix, offset


def orbit_maps(
    group: SpaceGroup, matrix: Float[np.ndarray, "3 3"], offset: Float[np.ndarray, " 3"]
) -> tuple[Float[np.ndarray, "image 3 3"], Float[np.ndarray, "image 3"]]:
    """Maps from free coordinates to all points of an orbit in a primitive cell, the representative's own first."""
    matrices = group.rotations @ matrix
    offsets = group.rotations @ offset + group.translations
    # A generic point in whole numbers of 1/24,024: every operation and basis change then stays exact.
    scale = 24 * 1001
    generic = np.array([2953, 6469, 9173])
    points = np.rint(matrices).astype(int) @ generic + np.rint(offsets * scale).astype(int)
    keys = points @ np.rint(np.linalg.inv(group.primitive)).astype(int) % scale
    _, first = np.unique(keys, axis=0, return_index=True)
    first = np.sort(first)
    return matrices[first], np.round(offsets[first] * 24) / 24 % 1


@cache
def wyckoff_table() -> WyckoffTable:
    """The table, read from the package once."""
    text = files("latentite.symmetry").joinpath("wyckoff.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    num = len(rows)
    matrix, offset = np.zeros((num, 3, 3)), np.zeros((num, 3))
    image_matrix = np.zeros((num, MAX_IMAGES, 3, 3))
    image_offset = np.zeros((num, MAX_IMAGES, 3))
    free_axes, num_free = np.full((num, 3), -1), np.zeros(num, dtype=int)
    num_images = np.zeros(num, dtype=int)
    for index, row in enumerate(rows):
        group = space_group(int(row["space_group"]))
        full, offset[index] = read_coordinates(row["coordinates"])
        used = np.flatnonzero(np.abs(full).any(axis=0))
        num_free[index] = len(used)
        matrix[index, :, : len(used)] = full[:, used]
        for column in range(len(used)):
            # The axis on which this coordinate stands alone with factor 1.
            lone = np.zeros(3)
            lone[column] = 1
            free_axes[index, column] = int(np.flatnonzero((matrix[index] == lone).all(axis=1))[0])
        maps, shifts = orbit_maps(group, matrix[index], offset[index])
        num_images[index] = len(maps)
        image_matrix[index, : len(maps)] = maps
        image_offset[index, : len(maps)] = shifts
    number = np.array([int(row["space_group"]) for row in rows])
    count = np.bincount(number, minlength=NUM_GROUPS + 1)
    return WyckoffTable(
        group=number,
        letter=tuple(row["letter"] for row in rows),
        site_symmetry=tuple(row["site_symmetry"] for row in rows),
        multiplicity=np.array([int(row["multiplicity"]) for row in rows]),
        num_images=num_images,
        num_free=num_free,
        free_axes=free_axes,
        matrix=matrix,
        offset=offset,
        image_matrix=image_matrix,
        image_offset=image_offset,
        first=np.cumsum(count) - count,
        count=count,
    )
