"""Descriptors of compositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from latentite.elements import COMPOSITION_WIDTH
from latentite.nn.condition_values import ConditionConfig, ConditionKind
from latentite.nn.conditions import AbsentPlace, ConditionModule, ConditionModuleConfig
from latentite.nn.element_features import (
    NUM_ROLES,
    NUM_SHARES,
    composition_descriptors,
    element_features,
    num_descriptors,
)


def shares(formula: str) -> torch.Tensor:
    """Of one composition, in double precision."""
    row = torch.zeros(1, COMPOSITION_WIDTH, dtype=torch.float64)
    for element, fraction in Composition(formula).fractional_composition.items():
        row[0, element.Z - 1] = fraction
    return row


def roles(formula: str) -> list[str]:
    """Elements in the order of their roles."""
    table = element_features().double()
    last = composition_descriptors(shares(formula))[0, -NUM_ROLES * table.shape[1] :].view(NUM_ROLES, -1)
    return [
        Element.from_Z(int((table - row).abs().sum(-1).argmin())).symbol for row in last if bool(row.any())
    ]


def test_the_largest_share_comes_first_then_the_least_electronegative() -> None:
    assert roles("SrTiO3") == ["O", "Sr", "Ti"]
    assert roles("MgAl2O4") == ["O", "Al", "Mg"]
    assert roles("NaCl") == ["Na", "Cl"]
    assert roles("Si") == ["Si"]


def test_stoichiometry_is_that_of_other_elements_with_the_same_shares() -> None:
    first, second = (composition_descriptors(shares(formula))[0] for formula in ("SrTiO3", "KMgF3"))
    told = NUM_SHARES + NUM_SHARES + 1
    torch.testing.assert_close(first[:told], second[:told])
    assert first[:4].tolist() == pytest.approx([1.2, 0.4, 0.4, 0.0])
    assert int(first[NUM_SHARES:told].argmax()) == 3
    assert not torch.allclose(first, second)


def test_means_and_spreads_are_those_of_pymatgen() -> None:
    formula = Composition("MgAl2O4")
    table = element_features()
    found = composition_descriptors(shares("MgAl2O4"))[0, 2 * NUM_SHARES + 1 :]
    values = np.array([element.X / 2 for element in formula for _ in range(int(formula[element]))])
    width = table.shape[1]
    assert float(found[width - 6]) == pytest.approx(values.mean(), rel=1e-5)
    assert float(found[width]) == pytest.approx(2 * values.std(), rel=1e-5)
    assert float(found[width + 6]) == pytest.approx(values.min(), rel=1e-5)
    assert float(found[width + 12]) == pytest.approx(values.max(), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=COMPOSITION_WIDTH, max_size=COMPOSITION_WIDTH))
def test_descriptors_are_finite_and_do_not_depend_on_the_scale(values: list[float]) -> None:
    row = torch.tensor([values], dtype=torch.float64)
    found = composition_descriptors(row)
    assert found.shape == (1, num_descriptors(COMPOSITION_WIDTH))
    assert found.isfinite().all()
    if float(row.sum()) > 1e-3:
        torch.testing.assert_close(composition_descriptors(row * 0.5), found)


def test_a_module_with_descriptors_tells_formulas_of_one_stoichiometry_more_alike() -> None:
    config = ConditionConfig(name="composition", kind=ConditionKind.COMPOSITION)
    torch.manual_seed(0)
    module = ConditionModule(ConditionModuleConfig(conditions=[config], hidden_size=64, descriptors=True))
    rows = torch.cat([shares(formula) for formula in ("SrTiO3", "BaTiO3", "Fe3C")]).float()
    with torch.no_grad():
        one, two, other = module({"composition": rows}).vector
    assert float((one - two).norm()) < float((one - other).norm())
    assert module.absent(2).vector.isfinite().all()
    with pytest.raises(ValueError, match="absent must be output with descriptors"):
        ConditionModuleConfig(conditions=[config], absent=AbsentPlace.INPUT, descriptors=True)
