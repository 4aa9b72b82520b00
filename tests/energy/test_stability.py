"""From energies to energies above hull, with a reason for every gap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.hull import Hull
from latentite.energy.potential import TheoryLevel
from latentite.energy.references import ElementReferences, ReferenceTerms, stability
from latentite.formulas import parse_formula

PBE = TheoryLevel(functional="PBE(+U)", is_corrected=True)


@pytest.fixture
def references() -> ElementReferences:
    """Li -2, O -5, Fe -8 eV/atom."""
    weights = np.zeros(118)
    weights[[2, 7, 25]] = (-2.0, -5.0, -8.0)
    return ElementReferences(
        terms=ReferenceTerms.ELEMENTS,
        weights=weights,
        elements=frozenset({3, 8, 26}),
        theory=PBE,
        table_theory=PBE,
        num_rows=100,
        mean_absolute_residual=0.02,
        left_out_residual=0.025,
    )


def test_each_row_says_what_is_known(references: ElementReferences) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        CrystalArrays(np.array(n), rng.random((len(n), 3)), 5 * np.eye(3))
        for n in ([3, 3, 8], [3, 8], [3, 8], [3, 26], [3, 79])
    ]
    energy = torch.tensor([-15.3, -9.4, torch.nan, -10.0, -5.0], dtype=torch.float64)
    hull = Hull([(parse_formula("Li2O"), -2.0)], theory=PBE)
    rows = stability(CrystalBatch.from_arrays(arrays), energy, references, hull)
    # Li2O: (-15.3 + 4 + 5) / 3 = -2.1; LiO: (-9.4 + 7) / 2 = -1.2 against 3/4 of -2.
    assert [row.formation_energy for row in rows[:2]] == pytest.approx([-2.1, -1.2])
    assert [row.energy_above_hull for row in rows[:2]] == pytest.approx([-0.1, 0.3])
    assert [row.num_competing for row in rows] == [1, 1, 1, 0, 0]
    assert [row.energy_above_hull for row in rows[2:]] == [None] * 3
    words = [
        None,
        None,
        "gave no energy",
        "no references in this chemical system",
        "no element reference for Au",
    ]
    for expected, row in zip(words, rows, strict=True):
        assert (row.reason is None) == (expected is None)
        assert expected is None or expected in str(row.reason)
    assert rows[3].formation_energy == pytest.approx(0.0)


def test_a_hull_of_another_level_of_theory_is_refused(references: ElementReferences) -> None:
    crystals = CrystalBatch.from_arrays([CrystalArrays(np.array([3, 3, 8]), np.zeros((3, 3)), 5 * np.eye(3))])
    hull = Hull([(parse_formula("Li2O"), -2.0)])
    with pytest.raises(ValueError, match="must be of one level of theory"):
        stability(crystals, torch.tensor([-15.3]), references, hull)
    assert len(stability(crystals, torch.tensor([-15.3]), references, hull, allow_mixed_theory=True)) == 1
