"""Space groups of known crystals, and of cells on which a search once did not come to an end."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from known_crystals import rock_salt
from latentite.crystal_arrays import CrystalArrays
from latentite.data.properties import space_group_number
from latentite.metrics import geometry
from latentite.metrics.geometry import SYMPRECS, space_groups


def arrays(structure: Structure) -> CrystalArrays:
    return CrystalArrays(np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix)


def known() -> list[CrystalArrays]:
    return [
        arrays(rock_salt("Na", "Cl", 5.6)),
        arrays(Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0] * 3, [0.5] * 3])),
        arrays(
            Structure(Lattice.from_parameters(4, 5, 6, 80, 85, 95), ["Cs", "Cl"], [[0] * 3, [0.4, 0.3, 0.2]])
        ),
    ]


def test_known_crystals_have_their_groups_at_every_tolerance() -> None:
    groups = space_groups(known(), workers=1)
    assert groups.tolist() == [[225] * 3, [221] * 3, [1] * 3]


def test_a_small_displacement_is_symmetric_at_the_larger_tolerance_only() -> None:
    numbers, coords, lattice = astuple(known()[1])
    moved = coords + np.array([[0.0, 0.0, 0.0], [0.0121, 0.0, 0.0]])  # 0.05 Å
    groups = dict(
        zip(SYMPRECS, space_groups([CrystalArrays(numbers, moved, lattice)], workers=1)[0], strict=True)
    )
    assert groups[0.01] == 99
    assert groups[0.1] == groups[0.2] == 221


def test_both_libraries_agree_on_known_crystals() -> None:
    for numbers, coords, lattice in map(astuple, known()):
        found = space_group_number(numbers, coords, lattice, symprec=0.1)
        assert (
            found == space_groups([CrystalArrays(numbers, coords, lattice)], symprecs=(0.1,), workers=1)[0, 0]
        )


@pytest.mark.parametrize(
    ("lengths", "count"),
    [((1.705, 41.878, 55.792), 5), ((1.022, 4.619, 169.964), 16), ((0.135, 1.0, 6.9), 4)],
)
def test_collapsed_and_long_cells_are_searched_to_an_end(
    lengths: tuple[float, float, float], count: int
) -> None:
    """moyopy 0.21 searched cells of these shapes without end, and one sample held up a whole evaluation."""
    rng = np.random.default_rng(0)
    crystals = [
        CrystalArrays(
            np.full(count, 6), rng.random((count, 3)), Lattice.from_parameters(*lengths, 75, 100, 65).matrix
        )
        for _ in range(5)
    ]
    assert space_groups(crystals, workers=1).shape == (5, len(SYMPRECS))


def test_workers_do_not_change_the_result_and_progress_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_CHUNK", 4)  # several tasks for each worker, the last one smaller
    crystals = known() * 6
    told: list[int] = []
    one = space_groups(crystals, workers=1, advance=told.append)
    np.testing.assert_array_equal(one, space_groups(crystals, workers=2))
    assert sum(told) == len(crystals) == 18
    assert len(told) == 5
