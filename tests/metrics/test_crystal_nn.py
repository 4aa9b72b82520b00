"""CrystalNN fingerprints: matminer's numbers, what they must not depend on, and cells in which they do not exist."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from pymatgen.core import Lattice

from latentite.crystal_arrays import CrystalArrays
from latentite.metrics.fingerprints import MAX_COORDINATION, MOTIFS, NUM_CRYSTAL_NN_FEATURES, crystal_nn

MATMINER = """
wt CN_1 = 0.18519; sgl_bd CN_1 = 0.18519; wt CN_2 = 0.234979; L-shaped CN_2 = 0.222047;
water-like CN_2 = 0.091458; bent 120 degrees CN_2 = 0.012095; bent 150 degrees CN_2 = 1.8e-05;
linear CN_2 = 1e-05; wt CN_3 = 0.313911; trigonal planar CN_3 = 0.116932;
trigonal non-coplanar CN_3 = 0.143884; T-shaped CN_3 = 0.177667; wt CN_4 = 0.231132;
square co-planar CN_4 = 0.101823; tetrahedral CN_4 = 0.080335; see-saw-like CN_4 = 0.095917;
rectangular see-saw-like CN_4 = 0.114648; trigonal pyramidal CN_4 = 0.083291; wt CN_5 = 0.006365;
pentagonal planar CN_5 = 0.001795; square pyramidal CN_5 = 0.00211;
trigonal bipyramidal CN_5 = 0.002522; wt CN_6 = 0.015267; hexagonal planar CN_6 = 0.005801;
octahedral CN_6 = 0.015267; pentagonal pyramidal CN_6 = 0.005731; wt CN_7 = 0.005941;
hexagonal pyramidal CN_7 = 0.003445; pentagonal bipyramidal CN_7 = 0.003077; wt CN_9 = 0.007215;
q2 CN_9 = 0.001576; q4 CN_9 = 0.002176; q6 CN_9 = 0.003102
"""


def labels() -> list[str]:
    return [
        f"{name} CN_{number}"
        for number in range(1, MAX_COORDINATION + 1)
        for name in ("wt", *MOTIFS.get(number, ()))
    ]


def test_fingerprint_equals_matminer() -> None:
    """Mean over the atoms of matminer 0.10.1's `CrystalNNFingerprint.from_preset("ops")` for a made-up crystal without
    symmetry that has many coordination numbers; what is not listed is 0 there."""
    lattice = Lattice.from_parameters(3.0, 3.4, 5.1, 90, 90, 120).matrix
    coords = np.array([[0.0, 0.0, 0.0], [0.3, 0.4, 0.35], [0.6, 0.1, 0.7]])
    pairs = (entry.split(" = ") for entry in MATMINER.replace("\n", " ").strip().split("; "))
    expected = {name: float(value) for name, value in pairs}
    assert expected.keys() <= set(labels())
    found = crystal_nn([CrystalArrays(np.array([30, 16, 8]), coords, lattice)], workers=1)[0]
    assert len(labels()) == NUM_CRYSTAL_NN_FEATURES == 61
    np.testing.assert_allclose(found, [expected.get(label, 0.0) for label in labels()], atol=2e-6)


def test_rock_salt_is_octahedral_in_the_small_cell_and_in_the_large_one(rocksalt: CrystalArrays) -> None:
    primitive = CrystalArrays(
        np.array([11, 17]),
        np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
        2.82 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    )
    small, large = crystal_nn([primitive, rocksalt], workers=1)
    np.testing.assert_allclose(small, large, atol=1e-3)
    assert small[labels().index("wt CN_6")] > 0.9
    assert small[labels().index("octahedral CN_6")] > 0.9


def test_what_cannot_be_computed_is_nan_and_keeps_its_place(perovskite: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(perovskite)
    on_one_site = CrystalArrays(numbers, np.zeros((5, 3)), lattice)
    collapsed = CrystalArrays(numbers, coords, lattice * 0.1)
    isolated = CrystalArrays(np.array([10]), np.zeros((1, 3)), 12.0 * np.eye(3))
    # Atoms in one corner of a cell of 300 Å: the tessellation would be repeated with millions of points.
    needle = CrystalArrays(numbers, coords * 0.01, np.diag([1.5, 1.5, 300.0]))
    rows = crystal_nn([collapsed, perovskite, on_one_site, isolated, needle], workers=1)
    assert np.isfinite(rows[1]).all()
    assert np.isnan(rows[[0, 4]]).all()
    np.testing.assert_array_equal(rows[1], crystal_nn([perovskite], workers=1)[0])
    # Whether atoms on one site have Voronoi cells is the library's affair, as long as it ends.
    assert all(np.isnan(row).all() or np.isfinite(row).all() for row in rows[2:4])


def test_workers_do_not_change_the_result_and_progress_counts_all(perovskite: CrystalArrays) -> None:
    told: list[int] = []
    crystals = [perovskite] * 17
    one = crystal_nn(crystals, workers=1, advance=told.append)
    np.testing.assert_array_equal(one, crystal_nn(crystals, workers=2))
    assert sum(told) == 17
    assert crystal_nn([]).shape == (0, 61)


@pytest.mark.parametrize("number", sorted(MOTIFS))
def test_pymatgen_has_every_motif(number: int) -> None:
    """A misspelt motif would be an error inside pymatgen only when a crystal has that coordination number."""
    from pymatgen.core.local_env import CN_OPT_PARAMS

    plain = {"sgl_bd", "q2", "q4", "q6"}
    assert set(MOTIFS[number]) - plain == set(CN_OPT_PARAMS.get(number, {}))
