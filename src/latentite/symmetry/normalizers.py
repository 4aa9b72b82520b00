"""Equivalent descriptions: what operations of a group and of its normalizer do to free coordinates.

An orbit of position p with free coordinates u is the same orbit with coordinates A u + b, for the maps (A, b) of the
operations that leave the form of the position's representative as it is. A member of the Euclidean normalizer (another
choice of the origin, mirrored axes) makes an orbit of position q of it, again with coordinates A u + b. Both kinds of
maps are tabulated here: `normalizers.csv` (made by `tools/wyckoff_table.py`) has the members.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Float, Int

from latentite.symmetry.positions import SpaceGroup, space_group, wyckoff_table


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Normalizer:
    """Euclidean normalizer of a group, modulo the group itself and shifts along its polar axes.

    Positions are counted from the first one of the group.
    """

    target: Int[np.ndarray, "member position"]
    """Row of `wyckoff_table()` of what each position becomes; the first member is the identity."""
    linear: Int[np.ndarray, "member position map 3 3"]
    """A of all maps u -> A u + b from the free coordinates of a position to those of its target; the last one is
    repeated where a position has fewer than others."""
    shift: Float[np.ndarray, "member position map 3"]
    """b of these."""


@cache
def _members() -> dict[int, list[tuple[Int[np.ndarray, "3 3"], Float[np.ndarray, " 3"]]]]:
    """Rotations and shifts of the members by group."""
    members: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    text = files("latentite.symmetry").joinpath("normalizers.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        linear = np.array(row["linear"].split(), dtype=int).reshape(3, 3)
        shift = np.array(row["shift_24"].split(), dtype=float) / 24
        members.setdefault(int(row["space_group"]), []).append((linear, shift))
    return members


@cache
def normalizer(number: int) -> Normalizer:
    """The normalizer of a space group, from 1 to 230."""
    table, group = wyckoff_table(), space_group(number)
    members = _members()[number]
    first, count = int(table.first[number]), int(table.count[number])
    target = np.zeros((len(members), count), dtype=int)
    maps: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for index, (linear, shift) in enumerate(members):
        maps.append([])
        for position in range(count):
            matrix = linear @ table.matrix[first + position]
            offset = linear @ table.offset[first + position] + shift
            target[index, position], found = _maps_of(group, matrix, offset)
            maps[-1].append(found)
    most = max(len(linear) for row in maps for linear, _ in row)
    padded = [[np.minimum(np.arange(most), len(linear) - 1) for linear, _ in row] for row in maps]
    return Normalizer(
        target=target,
        linear=np.array(
            [[m[0][i] for m, i in zip(*rows, strict=True)] for rows in zip(maps, padded, strict=True)]
        ),
        shift=np.array(
            [[m[1][i] for m, i in zip(*rows, strict=True)] for rows in zip(maps, padded, strict=True)]
        ),
    )


@cache
def self_maps(position: int) -> tuple[Int[np.ndarray, "map 3 3"], Float[np.ndarray, "map 3"]]:
    """Maps u -> A u + b between coordinates that describe the same orbit; the identity is one of them."""
    table = wyckoff_table()
    group = space_group(int(table.group[position]))
    return _maps_of(group, table.matrix[position], table.offset[position])[1]


def _maps_of(
    group: SpaceGroup, matrix: Float[np.ndarray, "3 3"], offset: Float[np.ndarray, " 3"]
) -> tuple[int, tuple[Int[np.ndarray, "map 3 3"], Float[np.ndarray, "map 3"]]]:
    """Position of the points M u + c for any u, and all maps from u to the coordinates of their orbit."""
    table = wyckoff_table()
    first, count = int(table.first[group.number]), int(table.count[group.number])
    image_matrix = group.rotations @ matrix
    image_offset = group.rotations @ offset + group.translations
    num_free = int(np.abs(matrix).any(axis=0).sum())
    for position in first + np.flatnonzero(table.num_free[first : first + count] == num_free):
        used = np.arange(3) < num_free
        axes = np.maximum(table.free_axes[position], 0)
        linear = image_matrix[:, axes] * used[:, None]
        shift = image_offset[:, axes] * used
        same = (np.abs(image_matrix - table.matrix[position] @ linear) < 1e-9).all(axis=(1, 2))
        gap = image_offset - shift @ table.matrix[position].T - table.offset[position]
        same &= (np.abs(gap - np.round(gap)) < 1e-6).all(axis=1)
        if same.any():
            keys = np.concatenate([linear.reshape(len(linear), 9), np.round(shift * 24) % 24], axis=1)[same]
            _, place = np.unique(np.rint(keys).astype(int), axis=0, return_index=True)
            chosen = np.flatnonzero(same)[place]
            return int(position), (
                np.rint(linear[chosen]).astype(int),
                np.round(shift[chosen] * 24) % 24 / 24,
            )
    raise ValueError(
        f"space group {group.number} must have a position of points {matrix} u + {offset}, got none"
    )
