"""Kinds that come again and again over a run earn less and less, whatever the order of crystals."""

from __future__ import annotations

import pytest
import torch
from pymatgen.core import Lattice, Structure

from known_crystals import rock_salt
from latentite.crystal import CrystalBatch
from latentite.rewards.repeats import CrystalKind, DiversityFilter, DiversityFilterConfig, kinds


def test_kinds_by_hand(crystals: CrystalBatch) -> None:
    """NaCl as cubic and primitive cell, MgO, bcc iron, and a triclinic NaO2."""
    assert kinds(crystals, CrystalKind.FORMULA) == ["Na1Cl1", "O1Mg1", "Fe1", "O2Na1", "Na1Cl1"]
    assert kinds(crystals, CrystalKind.CHEMICAL_SYSTEM) == ["Na-Cl", "O-Mg", "Fe", "O-Na", "Na-Cl"]
    assert kinds(crystals, CrystalKind.STRUCTURE) == [
        "Na1Cl1 225",
        "O1Mg1 225",
        "Fe1 229",
        "O2Na1 1",
        "Na1Cl1 225",
    ]


def filtered(one: DiversityFilter, batch: CrystalBatch, rewards: list[float], **usable: bool) -> list[float]:
    is_usable = torch.ones(len(batch), dtype=torch.bool)
    for position, value in usable.items():
        is_usable[int(position[1:])] = value
    return one(torch.tensor(rewards, dtype=torch.float64), batch, is_usable)[0].tolist()


def test_pay_falls_linearly_after_the_free_occurrences_of_earlier_rollouts(crystals: CrystalBatch) -> None:
    """NaCl, twice in each rollout, beside iron with the lowest reward: after 0, 2, 4, 6 NaCl."""
    one = DiversityFilter(DiversityFilterConfig(free=2, fading=3))
    batch = crystals.select(torch.tensor([0, 2, 4]))
    rewards = [5.0, 1.0, 9.0]
    assert filtered(one, batch, rewards) == rewards, "copies within a rollout do not count against each other"
    # The third occurrence keeps 3/4: of 5 - 1 and 9 - 1, above the lowest.
    assert filtered(one, batch, rewards) == pytest.approx([1.0 + 0.75 * 4.0, 1.0, 1.0 + 0.75 * 8.0])
    assert filtered(one, batch, rewards) == pytest.approx([1.0 + 0.25 * 4.0, 1.0, 1.0 + 0.25 * 8.0])
    assert filtered(one, batch, rewards) == pytest.approx([1.0, 1.0, 1.0])
    assert one.state() == {"Na1Cl1": 8, "Fe1": 4}


def test_the_order_within_a_rollout_does_not_matter(crystals: CrystalBatch) -> None:
    order = torch.tensor([4, 2, 0, 3, 1])
    rewards = torch.arange(5.0)
    ways = []
    for places in (torch.arange(5), order):
        one = DiversityFilter(DiversityFilterConfig(free=0, fading=2))
        usable = torch.ones(5, dtype=torch.bool)
        one(rewards[places], crystals.select(places), usable)
        found, is_repeated = one(rewards[places], crystals.select(places), usable)
        ways.append(torch.empty(5).scatter(0, places, found))
        assert is_repeated.all()
    torch.testing.assert_close(ways[0], ways[1])


def test_crystals_that_cannot_be_are_of_no_kind(crystals: CrystalBatch) -> None:
    one = DiversityFilter(DiversityFilterConfig(free=1, fading=0))
    for _ in range(2):
        assert filtered(one, crystals, [1.0, 2.0, 3.0, 4.0, 5.0], p0=False, p1=False, p2=False, p3=False)[
            :4
        ] == [
            1.0,
            2.0,
            3.0,
            4.0,
        ]
    assert one.state() == {"Na1Cl1": 2}


def test_what_is_restored_goes_on_as_before(crystals: CrystalBatch) -> None:
    one, other = (DiversityFilter(DiversityFilterConfig(free=1, fading=4)) for _ in range(2))
    filtered(one, crystals, [1.0, 2.0, 3.0, 4.0, 5.0])
    other.restore(one.state())
    assert filtered(one, crystals, [1.0, 2.0, 3.0, 4.0, 5.0]) == filtered(
        other, crystals, [1.0, 2.0, 3.0, 4.0, 5.0]
    )
    with pytest.raises(ValueError, match="free must be 0 or more, got -1"):
        DiversityFilterConfig(free=-1)


def test_polymorphs_are_one_formula_and_two_structures() -> None:
    sites = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    cesium_chloride = Structure(Lattice.cubic(3.5), ["Na", "Cl"], sites)
    batch = CrystalBatch.from_structures([cesium_chloride, rock_salt("Na", "Cl", 5.64)])
    assert len(set(kinds(batch, CrystalKind.FORMULA))) == 1
    assert len(set(kinds(batch, CrystalKind.STRUCTURE))) == 2
