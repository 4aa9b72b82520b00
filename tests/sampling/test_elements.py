"""Formulas and element rules: optimal against brute force, and exact whatever the network says."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_ldm import ALL_CONDITIONS, FLOW, TRAIN_SIZES, build_asks, tiny_network

from latentite.elements import SYMBOLS
from latentite.generators.asks import formula_unit
from latentite.generators.elements import (
    allowed_elements,
    assign_composition,
    assign_elements,
    choose_elements,
    element_numbers,
    fulfilled,
)
from latentite.generators.jobs import Ask, ElementRules, Jobs
from latentite.generators.latent.chain import SamplingConfig, sample_jobs
from latentite.generators.sizes import plan_jobs


def log_probs(num_atoms: int, seed: int) -> np.ndarray:
    """Random ones; some atoms are much surer than others."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_atoms, 100)) * generator.exponential(3.0, size=(num_atoms, 1))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 10_000))
def test_an_assigned_composition_is_the_best_of_all_orders(composition: list[int], seed: int) -> None:
    scores = log_probs(len(composition), seed)
    chosen = assign_composition(scores, composition)
    assert sorted(chosen.tolist()) == sorted(composition)
    best = max(
        sum(scores[atom, z] for atom, z in enumerate(order)) for order in itertools.permutations(composition)
    )
    assert sum(scores[atom, z] for atom, z in enumerate(chosen)) == pytest.approx(best)


@given(st.integers(1, 5), st.sets(st.integers(1, 6), min_size=1), st.data(), st.integers(0, 10_000))
def test_assigned_elements_are_the_best_that_keep_the_rules(
    num_atoms: int, allowed: set[int], data: st.DataObject, seed: int
) -> None:
    required = data.draw(st.sets(st.sampled_from(sorted(allowed)), max_size=num_atoms))
    rules = ElementRules(allowed=tuple(sorted(allowed)), required=tuple(sorted(required)))
    scores = log_probs(num_atoms, seed)
    chosen = assign_elements(scores, rules)
    assert set(chosen.tolist()) <= allowed
    assert required <= set(chosen.tolist())
    choices = itertools.product(sorted(allowed), repeat=num_atoms)
    best = max(
        sum(scores[a, z] for a, z in enumerate(choice)) for choice in choices if required <= set(choice)
    )
    assert sum(scores[a, z] for a, z in enumerate(chosen)) == pytest.approx(best)


def test_a_batch_of_different_asks_is_each_crystal_by_itself() -> None:
    """Also with atoms whose element is given: they count towards the composition and the required ones."""
    asks = (
        Ask(),
        Ask(composition=(3, 8, 8, 26), num_atoms=4),
        Ask(elements=ElementRules(allowed=(3, 8, 26), required=(3, 26))),
    )
    jobs = Jobs(
        indices=torch.arange(6),
        attempts=torch.zeros(6, dtype=torch.long),
        num_atoms=torch.tensor([2, 4, 3, 3, 4, 2]),
        asks=torch.tensor([0, 1, 2, 2, 1, 0]),
        asked=asks,
    )
    logits = torch.from_numpy(log_probs(18, seed=1)) * 2.0
    scores = logits.log_softmax(-1).numpy()
    parts = np.split(scores, jobs.num_atoms.cumsum(0)[:-1].numpy())
    found = choose_elements(logits, jobs).split(jobs.num_atoms.tolist())
    for ask, part, numbers in zip(jobs.asks.tolist(), parts, found, strict=True):
        if ask == 1:
            wanted = assign_composition(part, asks[1].composition or ())
        else:
            wanted = assign_elements(part, asks[ask].elements or ElementRules())
        assert numbers.tolist() == wanted.tolist()
    fixed = torch.zeros(18, dtype=torch.long)
    fixed[[3, 6]] = torch.tensor([26, 3])  # an atom of crystal 1 and the first of crystal 2
    held = choose_elements(logits, jobs, fixed).split(jobs.num_atoms.tolist())
    assert held[1][1] == 26
    assert sorted(held[1].tolist()) == [3, 8, 8, 26]
    assert held[2][0] == 3
    assert 26 in held[2][1:].tolist()
    assert held[0].equal(found[0])


def test_a_diverged_network_still_gives_what_was_asked() -> None:
    jobs = replace(
        Jobs.plain(torch.tensor([3, 2])),
        asks=torch.tensor([0, 1]),
        asked=(Ask(composition=(1, 8, 8)), Ask(elements=ElementRules(required=(26,)))),
    )
    logits = torch.full((5, 100), torch.nan)
    logits[1] = torch.inf
    found = choose_elements(logits, jobs)
    assert sorted(found[:3].tolist()) == [1, 8, 8]
    assert 26 in found[3:].tolist()
    assert bool((found > 0).all())


def formulas() -> st.SearchStrategy[str]:
    """Of one to four elements and at most twelve atoms."""
    amounts = st.dictionaries(st.sampled_from(SYMBOLS[:99]), st.integers(1, 3), min_size=1, max_size=4)
    return amounts.map(lambda found: "".join(f"{symbol}{n}" for symbol, n in found.items()))


NETWORKS = {"told": tiny_network(FLOW, ALL_CONDITIONS), "not told": tiny_network(FLOW)}


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=15)
@given(wanted=st.lists(formulas(), min_size=1, max_size=3))
def test_every_crystal_has_exactly_the_formula(name: str, wanted: list[str]) -> None:
    asks = build_asks(NETWORKS[name], train_sizes=None, formulas=wanted, formula_units=[1])
    jobs = plan_jobs(range(3 * len(wanted)), seed=0, sizes=TRAIN_SIZES, asks=asks, num_samples=3)
    crystals = sample_jobs(NETWORKS[name], FLOW, jobs, seed=0, config=SamplingConfig(steps=2)).crystals
    parts = crystals.atomic_numbers.split(crystals.num_atoms.tolist())
    for index, numbers in enumerate(parts):
        assert Counter(numbers.tolist()) == Counter(formula_unit(wanted[index // 3]))
    assert bool(fulfilled(crystals, jobs).all())


@settings(max_examples=15)
@given(
    st.sets(st.sampled_from(SYMBOLS[:99]), min_size=3, max_size=20),
    st.integers(0, 3),
    st.sets(st.sampled_from(SYMBOLS[:99]), max_size=40),
    st.booleans(),
)
def test_element_rules_hold_for_every_crystal(
    allowed: set[str], num_required: int, forbidden: set[str], is_limited: bool
) -> None:
    pool = sorted(allowed - forbidden) if is_limited else sorted(set(SYMBOLS[:99]) - forbidden)
    if not pool:
        return
    required = pool[:num_required]
    network = NETWORKS["not told"]
    asks = build_asks(
        network,
        train_sizes=TRAIN_SIZES,
        allowed=sorted(allowed) if is_limited else None,
        required=required,
        forbidden=sorted(forbidden),
    )
    jobs = plan_jobs(range(12), seed=0, sizes=TRAIN_SIZES, asks=asks)
    crystals = sample_jobs(network, FLOW, jobs, seed=0, config=SamplingConfig(steps=2)).crystals
    for numbers in crystals.atomic_numbers.split(crystals.num_atoms.tolist()):
        symbols = {SYMBOLS[z - 1] for z in numbers.tolist()}
        assert symbols <= set(pool)
        assert symbols >= set(required)
    assert bool(fulfilled(crystals, jobs).all())


def test_a_crystal_that_is_not_what_was_asked_is_noticed() -> None:
    network = NETWORKS["not told"]
    jobs = replace(
        Jobs.plain(torch.tensor([3, 3, 3])),
        asks=torch.arange(3),
        asked=(Ask(composition=(1, 8, 8)), Ask(elements=ElementRules(allowed=(1, 8), required=(1,))), Ask()),
    )
    crystals = sample_jobs(network, FLOW, jobs, seed=0, config=SamplingConfig(steps=2)).crystals
    assert fulfilled(crystals, jobs).tolist() == [True, True, True]
    for numbers in ([1, 1, 8], [8, 8, 8], [1, 8, 26]):
        wrong = replace(crystals, atomic_numbers=torch.tensor(numbers * 3))
        assert fulfilled(wrong, jobs).tolist() == [False, numbers == [1, 1, 8], True]


def test_symbols_are_read_from_text_and_sequences() -> None:
    assert element_numbers("x", "O, Li-Fe") == (3, 8, 26)
    assert element_numbers("x", ["Fe", "Fe"]) == (26,)
    assert not allowed_elements(None)[0]
    for wrong in ("Xx", "Fm", "fe"):
        with pytest.raises(
            ValueError, match=f"elements_allowed must name elements from H to Es, got '{wrong}'"
        ):
            element_numbers("elements_allowed", wrong)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("Li0.5FeO2", "whole numbers of atoms"),
        ("hello", "formula must be written such as LiFePO4, got 'hello'"),
        ("", "formula must"),
        ("FmO", "formula must name elements from H to Es, got 'Fm'"),
    ],
)
def test_what_is_no_formula_is_refused(formula: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formula_unit(formula)
    assert formula_unit("Ca(OH)2") == (1, 1, 8, 8, 20)
