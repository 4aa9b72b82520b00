"""Rewards of what a crystal is made of: SMACT validity, a target composition, a chemical system."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.properties import composition_vectors
from latentite.elements import ATOMIC_NUMBER, COMPOSITION_WIDTH, SYMBOLS
from latentite.formulas import parse_formula, reduced_composition
from latentite.metrics.composition import SmactRule, is_smact_valid

if TYPE_CHECKING:
    from pymatgen.core import Structure


class CompositionValidity:
    """1 for a formula that SMACT calls valid, else 0. Crystals of one element, valid by that rule, get 0 as well.

    Without that guard a policy that makes nothing but iron would be perfectly valid.
    """

    def __init__(self, rule: str = "smact_icsd24", allow_single_element: bool = False) -> None:
        """Choose the list of oxidation states (`metrics/composition.py`)."""
        if rule not in list(SmactRule):
            raise ValueError(f"rule must be one of {', '.join(SmactRule)}, got {rule!r}")
        self.rule = SmactRule(rule)
        self.allow_single_element = allow_single_element

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        compositions = [reduced_composition(crystal.atomic_numbers.tolist()) for crystal in batch.to_arrays()]
        return torch.tensor(
            [
                float((self.allow_single_element or len(c) > 1) and is_smact_valid(c, self.rule))
                for c in compositions
            ]
        )


class TargetComposition:
    """Share of the atoms that fit a formula: 1 for the formula itself, 0 when no element is right.

    1 - sum_e |x_e - y_e| / 2 over the fractions of the elements.
    """

    def __init__(self, formula: str) -> None:
        """Take a formula such as `LiFePO4`.

        Raises:
            ValueError: for what is no formula, or elements that no crystal can have.
        """
        composition = parse_formula(formula)
        total = sum(amount for _, amount in composition)
        self.target = torch.zeros(COMPOSITION_WIDTH)
        if composition[-1][0] > COMPOSITION_WIDTH:
            last, got = SYMBOLS[COMPOSITION_WIDTH - 1], SYMBOLS[composition[-1][0] - 1]
            raise ValueError(f"formula must have elements from H to {last}, got {got} in {formula!r}")
        for number, amount in composition:
            self.target[number - 1] = amount / total

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        return 1.0 - 0.5 * (composition_vectors(batch).float() - self.target).abs().sum(-1)


class TargetChemicalSystem:
    """Overlap of the set of elements with a system such as `Li-Fe-O`: shared elements / all elements of both."""

    def __init__(self, system: str) -> None:
        """Take symbols joined by hyphens.

        Raises:
            ValueError: for what is no element.
        """
        symbols = re.split(r"[-,\s]+", system.strip())
        if unknown := [symbol for symbol in symbols if symbol not in ATOMIC_NUMBER]:
            raise ValueError(f"system must be elements such as Li-Fe-O, got {unknown[0]!r} in {system!r}")
        self.elements = {ATOMIC_NUMBER[symbol] for symbol in symbols}

    def __call__(self, structures: Sequence[Structure], batch: CrystalBatch) -> Float[Tensor, " crystal"]:
        element_sets = [set(crystal.atomic_numbers.tolist()) for crystal in batch.to_arrays()]
        return torch.tensor([len(e & self.elements) / len(e | self.elements) for e in element_sets])
