"""Oxidation states, bond valences and verdicts against enumeration, pymatgen's own sums, and chemistry."""

from __future__ import annotations

import math
import warnings
from dataclasses import astuple
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Structure
from pymatgen.core.bond_valence import ELECTRONEG, PRIOR_PROB, BVAnalyzer, calculate_bv_sum

from known_crystals import rutile
from latentite.crystal_arrays import CrystalArrays
from latentite.elements import SYMBOLS
from latentite.formulas import reduced_composition
from latentite.match.reduced import structure_of
from latentite.metrics.charge import (
    ELECTRONEGATIVE,
    ChargeVerdict,
    best_neutral,
    bond_valence_states,
    bond_valence_sums,
    charge_neutrality,
    charge_plausibility,
)


def of(**counts: int) -> tuple[tuple[int, int], ...]:
    return reduced_composition([SYMBOLS.index(s) + 1 for s, n in counts.items() for _ in range(n)])


def arrays(structure: Structure) -> CrystalArrays:
    return CrystalArrays(np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix)


choices = st.lists(st.tuples(st.integers(-4, 6), st.floats(-9, 0)), min_size=1, max_size=4)


@given(options=st.lists(choices, min_size=1, max_size=5))
def test_best_neutral_choice_is_that_of_all_choices(options: list[list[tuple[int, float]]]) -> None:
    scores = [
        sum(score for _, score in choice)
        for choice in product(*options)
        if sum(charge for charge, _ in choice) == 0
    ]
    found = best_neutral(options)
    if not scores:
        assert found is None
        return
    assert found is not None
    assert found.score == pytest.approx(max(scores))
    assert sum(found.charges) == 0
    assert all(
        charge in [c for c, _ in choice] for charge, choice in zip(found.charges, options, strict=True)
    )


def plausibility_by_enumeration(composition: tuple[tuple[int, int], ...]) -> float:
    """Every multiset of states of each element, those that differ by more than 1 left out."""
    sides = []
    for number, count in composition:
        counts = {
            int(s.oxi_state): n
            for s, n in PRIOR_PROB.items()
            if s.symbol == SYMBOLS[number - 1] and s.oxi_state
        }
        total = sum(counts.values())
        sides.append(
            [
                (sum(states), math.prod(counts[state] / total for state in states))
                for states in combinations_with_replacement(sorted(counts), count)
                if max(states) - min(states) <= 1
            ]
        )
    products = [math.prod(p for _, p in c) for c in product(*sides) if sum(charge for charge, _ in c) == 0]
    return max(products, default=0.0) ** (1 / sum(count for _, count in composition))


@pytest.mark.parametrize(
    "composition",
    [
        of(Fe=3, O=4),
        of(Li=1, Fe=1, P=1, O=4),
        of(Na=1, Cl=2),
        of(Mn=2, O=3),
        of(Cu=1, Ag=1, O=2),
        of(Ti=4, O=7),
        of(Ba=1, Bi=1, O=3),
    ],
)
def test_plausibility_is_the_best_of_all_assignments(composition: tuple[tuple[int, int], ...]) -> None:
    assert charge_plausibility(composition) == pytest.approx(plausibility_by_enumeration(composition))


def test_plausibility_of_known_formulas() -> None:
    assert charge_plausibility(of(Na=1, Cl=1)) > 0.9
    assert charge_plausibility(of(Fe=3, O=4)) > 0.3  # one Fe2+ and two Fe3+: mixed valence
    assert charge_plausibility(of(Na=1, Cl=2)) == 0.0
    assert charge_plausibility(of(Na=1, Cl=1)) > charge_plausibility(of(Cu=1, Ag=1, O=2))
    assert charge_plausibility(of(Fe=3, Al=1)) == charge_plausibility(of(C=8)) == 1.0
    assert math.isnan(charge_plausibility(of(Ne=1, O=1)))


def test_large_formulas_are_judged_at_once() -> None:
    """Enumeration would try about 10^40 combinations."""
    composition = of(Mn=97, Fe=89, V=83, Cr=79, N=73, S=71, Cl=67, O=613)
    assert 0.0 <= charge_plausibility(composition) < 1.0


def test_electronegative_elements_are_pymatgens() -> None:
    assert {element.Z for element in ELECTRONEG} == set(ELECTRONEGATIVE)


def test_bond_valence_sums_equal_pymatgens(perovskite: CrystalArrays, rocksalt: CrystalArrays) -> None:
    crystals = [perovskite, arrays(rutile(4.594, 2.959)), rocksalt]
    for crystal, sums in zip(crystals, bond_valence_sums(crystals, distance_scale=1.015), strict=True):
        structure = structure_of(crystal)
        expected = [
            calculate_bv_sum(site, structure.get_neighbors(site, 4.0), scale_factor=1.015)
            for site in structure
        ]
        np.testing.assert_allclose(sums, expected, rtol=1e-4)


def test_bond_valence_states_of_known_crystals(perovskite: CrystalArrays, rocksalt: CrystalArrays) -> None:
    states = bond_valence_states([perovskite, rocksalt])
    assert [s.tolist() for s in states if s is not None] == [[2, 4, -2, -2, -2], [1] * 4 + [-1] * 4]


def test_states_are_found_wherever_pymatgen_finds_them(perovskite: CrystalArrays) -> None:
    """The best choice over all atoms includes the choices in which equivalent atoms are equal."""
    families = [(38, 22, 8), (11, 41, 8), (55, 82, 53), (20, 26, 8), (3, 9, 9), (11, 17, 8), (57, 13, 7)]
    analyzer = BVAnalyzer()
    found = 0
    for a, b, x in families:
        crystal = CrystalArrays(
            np.array([a, b, x, x, x]), perovskite.frac_coords, perovskite.lattice * (1.6 if x == 53 else 1.0)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                analyzer.get_valences(structure_of(crystal))
            except ValueError:
                continue
        found += 1
        states = bond_valence_states([crystal])[0]
        assert states is not None
        assert states.sum() == 0
    assert found >= 3  # the case compares something


def test_verdicts_follow_the_steps(perovskite: CrystalArrays, rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)

    def salt(first: int, second: int, scale: float = 1.0) -> CrystalArrays:
        return CrystalArrays(np.where(numbers == 11, first, second), coords, lattice * scale)

    alloy, element = salt(26, 13), salt(6, 6)
    no_bonds = salt(11, 17, 3.0)  # 8 Å apart: no bond valence speaks, the formula does
    no_sense = salt(11, 3)  # two metals, an alloy too
    cations = CrystalArrays(
        np.array([11, 19, 8]), np.array([[0, 0, 0], [0.5] * 3, [0.5, 0, 0]]), 4 * np.eye(3)
    )
    not_neutral = CrystalArrays(
        np.array([11, 17, 17]), np.array([[0, 0, 0], [0.5] * 3, [0.5, 0, 0]]), 4 * np.eye(3)
    )
    noble = salt(10, 8)
    crystals = [alloy, element, no_sense, rocksalt, perovskite, no_bonds, cations, not_neutral, noble]
    metal, bonds = ChargeVerdict.METAL, ChargeVerdict.BOND_VALENCE
    found = charge_neutrality(crystals)
    assert found[:5] == [metal, metal, metal, bonds, bonds]
    assert found[5] in (bonds, ChargeVerdict.COMPOSITION)
    assert found[6].is_neutral
    assert found[7:] == [ChargeVerdict.NONE, ChargeVerdict.UNKNOWN]
    assert [verdict.is_neutral for verdict in found] == [True] * 7 + [False] * 2


def test_what_is_no_crystal_is_judged_by_its_composition(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    flat = CrystalArrays(numbers, coords, lattice * np.array([1.0, 1.0, 0.0]))
    nan = CrystalArrays(numbers, coords * np.nan, lattice)
    collapsed = CrystalArrays(numbers, coords, lattice * 0.01)
    assert bond_valence_sums([flat, nan, collapsed]) == [None] * 3
    assert charge_neutrality([flat, nan, collapsed]) == [ChargeVerdict.COMPOSITION] * 3
    assert charge_neutrality([]) == []
