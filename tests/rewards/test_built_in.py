"""Known rewards of known crystals, by hand or by an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Structure

from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.rewards.compositions import CompositionValidity, TargetChemicalSystem, TargetComposition
from latentite.rewards.creativity import CreativityReward
from latentite.rewards.diversity import DiversityReward, SharesReward, mmd_contributions
from latentite.rewards.properties import Goal, PropertyReward, SupplyRiskReward, SymmetryReward
from latentite.rewards.protocol import NeedsReference, Reward, check_reward

ALL = [
    PropertyReward("density", maximise=True),
    PropertyReward("volume_per_atom", target=15.0, scale=2.0),
    PropertyReward("num_elements", low=2, high=3),
    SupplyRiskReward(),
    SymmetryReward(),
    CompositionValidity(),
    TargetComposition("MgO"),
    TargetChemicalSystem("Na-Cl"),
    DiversityReward("composition"),
    DiversityReward("structure"),
    SharesReward("num_atoms"),
    SharesReward("elements"),
    CreativityReward(),
]


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: type(reward).__name__)
def test_every_reward_keeps_the_contract(reward: Reward, crystals: CrystalBatch) -> None:
    check_reward(reward, crystals)


def ask(reward: Reward, crystals: CrystalBatch, reference: CrystalBatch | None = None) -> list[float]:
    if isinstance(reward, NeedsReference):
        reward.set_reference(crystals if reference is None else reference)
    return reward(crystals.to_structures(), crystals).double().tolist()


def test_density_is_that_of_pymatgen(crystals: CrystalBatch, structures: list[Structure]) -> None:
    wanted = [structure.density for structure in structures]
    assert ask(PropertyReward("density", maximise=True, scale=2.0), crystals) == pytest.approx(
        [value / 2.0 for value in wanted], rel=1e-4
    )
    with pytest.raises(ValueError, match=r"property must be one of density, .*, got 'beauty'"):
        PropertyReward("beauty", maximise=True)


def test_goals() -> None:
    values = torch.tensor([-1.0, 0.5, 2.0, torch.nan])
    wanted = {
        Goal(maximise=True, scale=2.0): [-0.5, 0.25, 1.0],
        Goal(minimise=True): [1.0, -0.5, -2.0],
        Goal(target=1.0): [-2.0, -0.5, -1.0],
        Goal(low=0.0, high=1.0, scale=0.5): [-2.0, 0.0, -2.0],
        Goal(low=0.0): [-1.0, 0.0, 0.0],
    }
    for goal, scores in wanted.items():
        assert goal.score(values)[:3].tolist() == scores
        assert goal.score(values)[3].isnan()
    for wrong in ({}, {"maximise": True, "target": 1.0}):
        with pytest.raises(ValueError, match="a goal must be exactly one of"):
            Goal(**wrong)
    with pytest.raises(ValueError, match="low must be below high"):
        Goal(low=2.0, high=1.0)


def test_one_element_is_no_valid_composition_here(crystals: CrystalBatch) -> None:
    """NaO2 has no neutral states; iron is valid by SMACT's rule, which a policy would find out."""
    assert ask(CompositionValidity(), crystals) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert ask(CompositionValidity(allow_single_element=True), crystals) == [1.0, 1.0, 1.0, 0.0, 1.0]


def test_targets(crystals: CrystalBatch) -> None:
    assert ask(TargetComposition("NaCl"), crystals) == pytest.approx([1.0, 0.0, 0.0, 1 / 3, 1.0])
    assert ask(TargetChemicalSystem("Na-Cl"), crystals) == pytest.approx([1.0, 0.0, 0.0, 1 / 3, 1.0])
    with pytest.raises(ValueError, match="system must be elements such as Li-Fe-O, got 'Xx'"):
        TargetChemicalSystem("Na-Xx")
    with pytest.raises(ValueError, match="formula must have elements from H to Fm, got Lr in 'LrO'"):
        TargetComposition("LrO")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        CreativityReward(workers=0)


def test_symmetry_and_supply(crystals: CrystalBatch) -> None:
    assert ask(SymmetryReward(), crystals) == [1.0, 1.0, 1.0, 0.0, 1.0]
    risks = ask(SupplyRiskReward(), crystals)
    assert all(-1.0 <= risk < 0.0 for risk in risks)
    assert risks[0] == pytest.approx(risks[4])


def mmd_by_loops(samples: np.ndarray, reference: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((np.dot(x, y) / len(x) + 1.0) ** 3)

    within = np.mean([kernel(x, y) for x in samples for y in samples])
    across = np.mean([kernel(x, y) for x in samples for y in reference])
    return float(within - 2.0 * across + np.mean([kernel(x, y) for x in reference for y in reference]))


def test_contributions_are_the_change_of_the_discrepancy() -> None:
    generator = np.random.default_rng(0)
    samples, reference = generator.normal(size=(5, 4)), generator.normal(size=(7, 4)) + 0.5
    found = mmd_contributions(torch.from_numpy(samples), torch.from_numpy(reference))
    whole = mmd_by_loops(samples, reference)
    wanted = [mmd_by_loops(np.delete(samples, i, axis=0), reference) - whole for i in range(5)]
    assert found.tolist() == pytest.approx(wanted)
    assert mmd_contributions(torch.zeros(1, 4), torch.zeros(3, 4)).tolist() == [0.0]


def test_whoever_is_like_nothing_known_brings_the_batch_away() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(200, 6, generator=generator)
    samples = torch.randn(20, 6, generator=generator)
    samples[0] = 8.0
    assert int(mmd_contributions(samples, reference).argmin()) == 0


@pytest.mark.parametrize("of", ["num_atoms", "elements"])
def test_what_a_batch_has_too_much_of_is_worth_less(of: str, structures: list[Structure]) -> None:
    """Known crystals: NaCl (8 atoms), of which half are, and MgO with 2. The batch has NaCl three times in four."""
    salt, oxide = structures[0], structures[1].get_primitive_structure()
    assert len(salt) != len(oxide)
    assert not set(salt.composition) & set(oxide.composition)
    known = CrystalBatch.from_structures([salt, oxide] * 200)
    same = ask(SharesReward(of), CrystalBatch.from_structures([salt, oxide] * 200), known)
    assert same == pytest.approx([0.0] * 400, abs=5e-3)
    scores = ask(SharesReward(of), CrystalBatch.from_structures([salt, salt, salt, oxide] * 200), known)
    # Of 800 crystals and 16 of the known ones: (600 + 8) / 816 and (200 + 8) / 816 instead of 1/2.
    expected = [np.log(0.5 * 816 / 608), np.log(0.5 * 816 / 208)]
    assert [scores[0], scores[3]] == pytest.approx(expected, abs=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_a_batch_is_worth_minus_its_divergence_from_known_shares(chosen: list[int]) -> None:
    """The mean reward: minus KL(batch || known), but for the known crystals that are counted to it, so never above 0
    by more than these can bring."""
    kinds = [structure_of_size(size) for size in (1, 3, 5, 7)]
    known = CrystalBatch.from_arrays(kinds * 25)
    batch = CrystalBatch.from_arrays([kinds[kind] for kind in chosen])
    scores = SharesReward("num_atoms")
    scores.set_reference(known)
    found = float(scores([], batch).mean())
    counts = np.bincount(chosen, minlength=4)
    shares, mixed = counts / len(chosen), (counts + 16 * 0.25) / (len(chosen) + 16)
    assert found == pytest.approx(float((shares * np.log(0.25 / mixed)).sum()), abs=2e-2)
    assert found < 2e-2


def structure_of_size(count: int) -> CrystalArrays:
    """A row of hydrogen atoms."""
    places = np.arange(count)[:, None] / count * np.array([1.0, 0.0, 0.0])
    return CrystalArrays(
        atomic_numbers=np.ones(count, dtype=np.int64),
        frac_coords=places,
        lattice=np.diag([4.0 * count, 4, 4]),
    )


def test_creativity_knows_duplicates_and_known_crystals(
    crystals: CrystalBatch, structures: list[Structure]
) -> None:
    """NaCl twice, as cubic and primitive cell; MgO is known."""
    known = CrystalBatch.from_structures([structures[1]] * 3 + [structures[3]])
    scores = ask(CreativityReward(), crystals, known)
    assert scores[0] == scores[4] == pytest.approx(0.0, abs=1e-3), "novel, but not unique, and equal"
    assert scores[1] == pytest.approx(0.0, abs=1e-3), "unique, but known"
    assert scores[2] == 1.0, "neither a duplicate nor known"
    assert scores[3] == pytest.approx(0.0, abs=1e-3)


def test_a_strained_duplicate_is_graded_by_its_distance(structures: list[Structure]) -> None:
    strained = structures[0].copy()
    strained.apply_strain([0.03, 0.0, -0.03])
    batch = CrystalBatch.from_structures([structures[0], strained, structures[1]])
    scores = ask(
        CreativityReward(), batch, CrystalBatch.from_structures([structures[2]] * 2 + [structures[3]])
    )
    assert 0.0 < scores[0] < 1.0
    assert scores[0] == pytest.approx(scores[1])
    assert scores[2] == 1.0


def test_rewards_that_compare_ask_for_their_reference(crystals: CrystalBatch) -> None:
    for reward in (CreativityReward(), DiversityReward("structure")):
        with pytest.raises(ValueError, match=r"needs set_reference\(training crystals\)"):
            reward(crystals.to_structures(), crystals)
