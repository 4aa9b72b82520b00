"""Makes `wyckoff.csv` and `normalizers.csv` of `latentite.symmetry`: Wyckoff positions and Euclidean normalizers.

    python tools/wyckoff_table.py FOLDER

moyopy holds the positions of International Tables A (standard settings: unique axis b, hexagonal axes, origin choice
2), but tells them only for the atoms of a crystal. So a crystal is built for every position: all points, axes and
planes that operations of the group leave where they are, found on a grid of 24ths, which all special positions of all
groups pass. It takes some minutes, and writes the same bytes every time.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import moyopy
import numpy as np
from jaxtyping import Float, Int

from latentite.base.files import replacing

GRID = np.array(sorted({k / 8 for k in range(8)} | {k / 12 for k in range(12)}))
SHIFTS = np.array(list(itertools.product(range(-2, 3), repeat=3)), dtype=float)
Operations = tuple[Int[np.ndarray, "operation 3 3"], Float[np.ndarray, "operation 3"]]


def operations(number: int) -> Operations:
    """Operations of a group in its standard setting, centring translations included."""
    found = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
    return np.array(found.rotations), np.array(found.translations)


def null_space(matrix: Float[np.ndarray, "row 3"]) -> Float[np.ndarray, "dim 3"]:
    """Orthonormal directions that the matrix maps to zero."""
    _, singular, rows = np.linalg.svd(matrix)
    return rows[(singular > 1e-9).sum() :]


def stabilizer(point: Float[np.ndarray, " 3"], group: Operations) -> Int[np.ndarray, " operation"]:
    """Operations that leave a point where it is, up to lattice translations."""
    moved = group[0] @ point + group[1] - point
    return np.flatnonzero(np.abs(moved - np.round(moved)).max(axis=1) < 1e-6)


def special_points(group: Operations, rng: np.random.Generator) -> Iterator[Float[np.ndarray, " 3"]]:
    """A generic point of every set that some operation leaves where it is, with repeats."""
    seen = set()
    for point in itertools.product(GRID, repeat=3):
        base = np.array(point)
        fixed = stabilizer(base, group)
        # The point alone may be fixed by two axes that cross; every line and plane is fixed by a single operation.
        sets = [group[0][index] - np.eye(3) for index in fixed]
        for matrix in [*sets, np.concatenate(sets)]:
            directions = null_space(matrix)
            generic = base + rng.uniform(0.05, 0.45, len(directions)) @ directions
            if len(directions) == 3:
                generic = rng.uniform(0, 1, 3)
            # One generic point per set of operations and grid point's class is enough.
            key = (
                tuple(stabilizer(generic, group)),
                len(directions),
                tuple(np.round(projected(base, directions), 6)),
            )
            if key not in seen:
                seen.add(key)
                yield generic


def projected(
    points: Float[np.ndarray, "*point 3"], directions: Float[np.ndarray, "dim 3"]
) -> Float[np.ndarray, "*point 3"]:
    """The part of each point that is not along the directions."""
    return points - (points @ directions.T) @ directions


def positions(number: int, rng: np.random.Generator) -> list[Float[np.ndarray, " 3"]]:
    """One generic point of every Wyckoff position."""
    group = operations(number)
    kept: list[tuple[np.ndarray, tuple[int, ...], np.ndarray]] = []
    for point in special_points(group, rng):
        images = group[0] @ point + group[1]
        images -= np.floor(images)
        fixed_by = [tuple(stabilizer(image, group)) for image in images]
        is_known = any(
            np.abs(projected(image - other + SHIFTS, directions)).max(axis=1).min() < 1e-6
            for other, fixed_by_same, directions in kept
            for image, fixed in zip(images, fixed_by, strict=True)
            if fixed == fixed_by_same
        )
        if not is_known:
            own = stabilizer(point, group)
            directions = null_space(np.concatenate([group[0][index] - np.eye(3) for index in own]))
            kept.append((point, tuple(own), directions))
    return [point for point, _, _ in kept]


def generic_lattice(number: int) -> Float[np.ndarray, "3 3"]:
    """A cell of the crystal system with nothing special about it."""
    if number >= 195:
        return np.eye(3) * 20.0
    if number >= 143:
        return np.array([[20.0, 0, 0], [-10, 10 * 3**0.5, 0], [0, 0, 27.3]])
    if number >= 75:
        return np.diag([20.0, 20.0, 27.3])
    if number >= 16:
        return np.diag([17.1, 20.3, 27.7])
    if number >= 3:
        return np.array([[17.1, 0, 0], [0, 20.3, 0], [-5.3, 0, 27.7]])
    return np.array([[17.1, 0, 0], [3.1, 20.3, 0], [-5.3, 4.2, 27.7]])


def orbit(point: Float[np.ndarray, " 3"], group: Operations) -> Float[np.ndarray, "atom 3"]:
    """All images of a point in the cell."""
    images = group[0] @ point + group[1]
    images = np.round(images - np.floor(images), 9) % 1
    return np.unique(np.round(images, 7), axis=0)


def table(number: int) -> list[tuple[int, str, int, str, str]]:
    """Rows of one group: number, letter, multiplicity, site symmetry, coordinates."""
    rng = np.random.default_rng(number)
    group = operations(number)
    rows: dict[str, tuple[int, str, int, str, str]] = {}
    generic = [orbit(rng.uniform(0, 1, 3), group) for _ in range(2)]
    for point in positions(number, rng):
        groups = [*generic, orbit(point, group)]
        coords = np.concatenate(groups)
        kinds = np.repeat([3, 9, 47], [len(one) for one in groups]).tolist()
        cell = moyopy.Cell(generic_lattice(number).tolist(), coords.tolist(), kinds)
        dataset = moyopy.MoyoDataset(cell, symprec=1e-4, setting=moyopy.Setting.standard())
        if dataset.number != number:
            raise ValueError(f"group {number}: the crystal of {point} has group {dataset.number}")
        normalizer = dataset.normalizer_wyckoff_positions()
        for _, sequence in normalizer.coset_representatives:
            for one in sequence:
                rows[one.letter] = (number, one.letter, one.multiplicity, one.site_symmetry, one.coordinates)
    order = "abcdefghijklmnopqrstuvwxyzA"
    return [rows[letter] for letter in sorted(rows, key=order.index)]


def normalizer(number: int) -> list[tuple[int, str, str]]:
    """Operations of the Euclidean normalizer of a cell with nothing special.

    They are counted modulo the group itself and shifts along polar axes.

    Returns:
        For each one the number of the group, the linear part row by row, and the shift in 24ths.
    """
    rng = np.random.default_rng(number)
    group = operations(number)
    coords = np.concatenate([orbit(rng.uniform(0, 1, 3), group) for _ in range(2)])
    kinds = np.repeat([3, 9], len(coords) // 2).tolist()
    cell = moyopy.Cell(generic_lattice(number).tolist(), coords.tolist(), kinds)
    dataset = moyopy.MoyoDataset(cell, symprec=1e-4, setting=moyopy.Setting.standard())
    positions = dataset.normalizer_wyckoff_positions()
    members = [*positions.stabilizer, *(one for one, _ in positions.coset_representatives)]
    polar = (group[0] == np.eye(3, dtype=int)).all(axis=(0, 1))
    known: set[bytes] = set()
    rows = []
    for member in members:
        linear, shift = np.array(member.linear), np.where(polar, 0.0, member.origin_shift)
        # Members that differ by an operation of the group describe a crystal alike: one of each coset is kept.
        coset = (group[0] @ linear).reshape(-1, 9)
        shifts = np.where(polar, 0, np.round((group[0] @ shift + group[1]) * 24).astype(int) % 24)
        keys = {key.tobytes() for key in np.concatenate([coset, shifts], axis=1)}
        if known.isdisjoint(keys):
            known |= keys
            in_24ths = np.round(shift * 24).astype(int) % 24
            rows.append((number, " ".join(map(str, linear.ravel())), " ".join(map(str, in_24ths))))
    return rows


def write(path: Path, header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """One table, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    sys.stdout.write(f"{path.name}: {len(rows)} rows\n")


def main(folder: Path) -> None:
    """Write both tables."""
    normalizers = [row for number in range(1, 231) for row in normalizer(number)]
    write(folder / "normalizers.csv", ("space_group", "linear", "shift_24"), normalizers)
    rows = [row for number in range(1, 231) for row in table(number)]
    write(
        folder / "wyckoff.csv",
        ("space_group", "letter", "multiplicity", "site_symmetry", "coordinates"),
        rows,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
