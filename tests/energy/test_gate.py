"""What is refused before a potential is asked, and with which words."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from lennard_jones import LennardJones
from small_crystals import argon, fcc, packed

from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.checks import Limits
from latentite.energy.gate import gate
from latentite.energy.settings import GateLimits

CARD = LennardJones().card


def test_good_crystals_pass() -> None:
    assert gate(argon(), CARD) == [None, None, None]


def test_each_refusal_names_its_reason_and_leaves_the_others_alone() -> None:
    numbers, coords, cell = astuple(fcc(18, 4.1))
    flat = np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [3.9, 0.4, 0.3]])
    bad = [
        (CrystalArrays(numbers, coords * np.nan, cell), "coordinates are not finite"),
        (CrystalArrays(numbers, coords, cell + np.inf), "vectors are not finite"),
        (CrystalArrays(np.array([18, 8, 18, 18]), coords, cell), "does not know the element O"),
        (CrystalArrays(np.array([18, 120, 18, 18]), coords, cell), "atomic number 120"),
        (
            CrystalArrays(numbers[:2], np.array([[0.0, 0, 0], [0.05, 0, 0.99]]), cell),
            "apart, closer than 0.5",
        ),
        (CrystalArrays(numbers, coords, 0.4 * cell), "Å^3 per atom, outside"),
        (CrystalArrays(numbers, coords, flat), "an angle of"),
        (CrystalArrays(numbers[:1], coords[:1], np.diag([0.3, 9.0, 9.0])), "lattice planes 0.3"),
        (CrystalArrays(numbers[:1], coords[:1], np.diag([9.0, 9.0, 9.0])), "without any neighbour within 6"),
        (CrystalArrays(numbers, coords, 0.0 * cell), "absurd cell"),
        (CrystalArrays(numbers[:0], coords[:0], cell), "no atoms"),
    ]
    good = fcc(18, 4.1)
    reasons = gate(packed([item for crystal, _ in bad for item in (good, crystal)] + [good]), CARD)
    assert reasons[::2] == [None] * (len(bad) + 1)
    for (_, words), reason in zip(bad, reasons[1::2], strict=True):
        assert reason is not None
        assert words in reason


def test_a_collapsed_cell_is_refused_before_its_neighbours_are_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 atoms at 1 Å^3 each once took 30 s and 14.7 GB."""
    rng = np.random.default_rng(0)
    crystal = CrystalArrays(np.full(20, 18), rng.random((20, 3)), 20 ** (1 / 3) * np.eye(3))
    lax = GateLimits(
        geometry=Limits(max_atoms=None, min_distance=0.0, min_volume_per_atom=0.1), max_pairs=5000
    )
    monkeypatch.setattr("pymatgen.optimization.neighbors.find_points_in_spheres", None)
    (reason,) = gate(packed([crystal]), CARD, lax)
    assert reason is not None
    assert "max_pairs" in reason


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="min_angle must be"):
        GateLimits(min_angle=70.0)
    with pytest.raises(ValueError, match="max_pairs must be"):
        GateLimits(max_pairs=0)
