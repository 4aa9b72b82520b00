"""Our SMACT rule against smact's own, over random formulas and known ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentite.elements import SYMBOLS
from latentite.formulas import reduced_composition
from latentite.metrics.composition import SmactRule, has_unknown_element, is_smact_valid, supply_risk

SMACT_NAMES = {SmactRule.PAULING: "smact14", SmactRule.ICSD24: "icsd24"}


def of(**counts: int) -> tuple[tuple[int, int], ...]:
    return reduced_composition([SYMBOLS.index(s) + 1 for s, n in counts.items() for _ in range(n)])


@settings(max_examples=150, deadline=None)
@given(
    counts=st.dictionaries(st.integers(1, 100), st.integers(1, 6), min_size=1, max_size=4),
    rule=st.sampled_from(SmactRule),
)
def test_rule_equals_smact_on_random_formulas(counts: dict[int, int], rule: SmactRule) -> None:
    from smact.screening import smact_validity

    formula = "".join(f"{SYMBOLS[number - 1]}{count}" for number, count in counts.items())
    composition = reduced_composition([n for n, count in counts.items() for _ in range(count)])
    # smact's name for its default list, with its default filter, is no name at all.
    name = None if rule is SmactRule.ICSD24 else SMACT_NAMES[rule]
    try:
        expected = smact_validity(formula, oxidation_states_set=name)
    except NameError:  # smact does not know the element
        return
    assert is_smact_valid(composition, rule) == expected


@pytest.mark.parametrize("rule", SmactRule)
def test_known_formulas(rule: SmactRule) -> None:
    assert is_smact_valid(of(Na=1, Cl=1), rule)
    assert is_smact_valid(of(Ti=2, O=4), rule)
    assert is_smact_valid(of(Fe=3, Al=1), rule)  # an alloy
    assert is_smact_valid(of(Xe=4), rule)  # one element
    assert not is_smact_valid(of(Na=1, Cl=2), rule)
    assert not is_smact_valid(of(Ne=2, O=1), rule)  # no states, and no crash
    assert has_unknown_element(of(Ne=2, O=1), rule)
    assert not has_unknown_element(of(Na=1, Cl=1), rule)


def test_eight_elements_are_judged_at_once() -> None:
    composition = of(Mn=1, Fe=1, V=1, Cr=1, N=5, S=3, Cl=7, O=9)
    assert is_smact_valid(composition, SmactRule.PAULING)


def test_composition_is_reduced_and_ordered() -> None:
    assert reduced_composition([8, 22, 8, 8, 22, 8]) == ((8, 2), (22, 1))


def test_supply_risk_is_the_mean_by_mass() -> None:
    """Hand-computed: NaCl with the indices of Gaultois et al. 2013 for Na (1100, 500) and Cl (1500, 1500)."""
    from smact.data_loader import lookup_element_hhis

    sodium, chlorine = lookup_element_hhis("Na"), lookup_element_hhis("Cl")
    assert sodium is not None
    assert chlorine is not None
    weight = 22.98977 / (22.98977 + 35.453)
    expected = [weight * a + (1 - weight) * b for a, b in zip(sodium, chlorine, strict=True)]
    assert supply_risk(of(Na=3, Cl=3)) == pytest.approx(expected, rel=1e-4)
    assert supply_risk(of(Ar=1))[0] != supply_risk(of(Ar=1))[0]  # NaN: not in the table
