"""Crystals drawn from a crystal GPT: what it tells of them, what is asked of them, and on what they depend."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from tiny_gpt import tiny_gpt, uniforms

from latentite.nn.condition_values import ConditionConfig
from latentite.nn.element_features import NUM_SYMBOLS
from latentite.nn.gpt.choices import DrawSettings, choose, guided
from latentite.nn.gpt.network import num_elements
from latentite.nn.gpt.places import FINE_FLOOR, without_clashes
from latentite.nn.gpt.reach import START, Needs, choices, is_reachable
from latentite.nn.gpt.sample import Draws, Sampler
from latentite.nn.gpt.size import GPTLimits
from latentite.nn.gpt.trunk import KeyValueCache
from latentite.nn.gpt.wishes import Wish, Wishes, has_letters, possible_groups
from latentite.symmetry.dataset import minkowski_reductions
from latentite.symmetry.orbits import OrbitBatch
from latentite.symmetry.positions import wyckoff_table

FREE = DrawSettings()
"""Exactly the network's own distribution."""


def rescored(network, orbits: OrbitBatch, conditioning=None) -> torch.Tensor:
    reductions = torch.from_numpy(minkowski_reductions(orbits.primitive_lattices().numpy()))
    with torch.no_grad():
        return network.log_prob(orbits, reductions, conditioning).total


def formulas(drawn: Draws) -> list[Counter[int]]:
    return [Counter(one.atomic_numbers.tolist()) for one in drawn.orbits.to_crystals().to_arrays()]


def test_own_samples_have_the_log_probability_that_the_sampler_told() -> None:
    network = tiny_gpt()
    drawn = Sampler(network.gpt, FREE).draw(uniforms(network, 100))
    assert (rescored(network, drawn.orbits) - drawn.log_prob).abs().max() < 1e-4


@pytest.mark.parametrize(
    "limits",
    [
        GPTLimits(max_atoms=3, max_orbits=2, max_elements=1),
        GPTLimits(max_atoms=2, max_orbits=2, max_elements=2),
        GPTLimits(max_atoms=12, max_orbits=1, max_elements=3),
        GPTLimits(max_atoms=20, max_orbits=3, max_elements=2),
    ],
)
def test_at_the_limits_too_samples_have_the_log_probability_that_the_sampler_told(limits: GPTLimits) -> None:
    """Teacher forcing knew no forced end, and gave probability to groups in which nothing fits."""
    network = tiny_gpt(limits=limits)
    drawn = Sampler(network.gpt, FREE).draw(uniforms(network, 200, seed=1))
    assert int(drawn.orbits.num_orbits.max()) == limits.max_orbits
    assert (rescored(network, drawn.orbits) - drawn.log_prob).abs().max() < 1e-4


def test_atoms_never_overlap_where_there_is_room() -> None:
    """Four oxygens in P1, each anywhere in a cell of about 200 Å^3: an untrained network knows nothing of distances."""
    network = tiny_gpt()
    network.gpt.element_volume.fill_(float(np.log(50.0)))
    wishes = Wishes.of([Wish(groups=(1,), composition=((8, 4),))] * 120)
    drawn = Sampler(network.gpt, FREE).draw(uniforms(network, 120), wishes=wishes)
    roomy = drawn.orbits.primitive_lattices().norm(dim=-1).amin(-1) > 3.0
    assert roomy.sum() > 20
    # Within a fine bin a coordinate may be off its centre by half a bin.
    assert drawn.closest[roomy].min() > FINE_FLOOR - 0.05
    # The model is not told what is asked: group, letters and elements cost it the same for all of them.
    surplus = drawn.log_prob - rescored(network, drawn.orbits)
    assert (surplus - surplus.mean()).abs().max() < 1e-3


def test_where_all_candidates_overlap_none_is_left_out_and_known_ones_stay() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, float("-inf")], [1.0, 2.0, 3.0]])
    near = torch.tensor([[0.1, 0.9, 0.2], [0.1, 0.2, 0.9], [0.1, 0.9, 0.2]])
    known = torch.tensor([[False] * 3, [False] * 3, [True, False, False]])
    inf = float("-inf")
    left = without_clashes(scores, near, 0.6, known)
    assert left.tolist() == [[inf, 2.0, inf], [1.0, 2.0, inf], [1.0, 2.0, inf]]


def test_a_crystal_does_not_depend_on_those_beside_it() -> None:
    network = tiny_gpt()
    numbers = uniforms(network, 60)
    sampler = Sampler(network.gpt, DrawSettings(temperature=0.9, top_p=0.95))
    whole = sampler.draw(numbers).orbits
    rows = torch.tensor([3, 59, 17, 18])
    part, same = sampler.draw(numbers[rows]).orbits, whole.select(rows)
    assert part.position.equal(same.position)
    assert part.element.equal(same.element)
    assert torch.allclose(part.coords, same.coords, atol=1e-6)
    assert torch.allclose(part.cell, same.cell, atol=1e-5)


def test_the_cache_of_keys_and_values_changes_nothing_and_the_future_does_not_matter() -> None:
    trunk = tiny_gpt().gpt.trunk
    tokens = torch.randn(5, 9, 32, generator=torch.Generator().manual_seed(1))
    allowed = torch.ones(5, 9, dtype=torch.bool)
    allowed[2, 4:] = False
    with torch.no_grad():
        at_once = trunk(tokens, allowed)
        cache = KeyValueCache()
        one_by_one = [trunk(tokens[:, [k]], allowed[:, [k]], cache) for k in range(9)]
        assert (torch.cat(one_by_one, dim=1) - at_once).abs().max() < 1e-5
        changed = tokens.clone()
        changed[:, 6] += 1.0
        other = trunk(changed, allowed)
    assert other[:, :6].equal(at_once[:, :6])
    assert not other[:, 6:].equal(at_once[:, 6:])


def violations(orbits: OrbitBatch, limits: GPTLimits) -> dict[str, int]:
    """Breaches of each mask, by its name; of what is no crystal, too."""
    table = wyckoff_table()
    position, element, crystal = orbits.position.numpy(), orbits.element.numpy(), orbits.crystal_index.numpy()
    num_free = table.num_free[position]
    same = crystal[1:] == crystal[:-1]
    repeats = same & (position[1:] == position[:-1])
    used = np.arange(3) < num_free[:, None]
    crystals = orbits.to_crystals()
    finite = torch.isfinite(crystals.lattice).all() & torch.isfinite(crystals.frac_coords).all()
    is_broken = {
        "atoms": orbits.num_atoms.numpy() > limits.max_atoms,
        "orbits": orbits.num_orbits.numpy() > limits.max_orbits,
        "no orbit": orbits.num_orbits.numpy() < 1,
        "kinds of elements": num_elements(orbits).numpy() > limits.max_elements,
        "symbols": (element < 1) | (element >= NUM_SYMBOLS),
        "letters of another group": table.group[position] != orbits.space_group.numpy()[crystal],
        "order of letters": same & (position[1:] < position[:-1]),
        "a full position again": repeats & (num_free[1:] == 0),
        "order of elements": repeats & (element[1:] < element[:-1]),
        "coordinates that are not free": (orbits.coords.numpy() != 0) & ~used,
        "range of coordinates": (orbits.coords.numpy() < 0) | (orbits.coords.numpy() >= 1),
        "cells": torch.linalg.det(crystals.lattice).numpy() <= 0,
        "numbers": np.array([not finite]),
        "atoms of orbits": crystals.num_atoms.numpy() != orbits.num_atoms.numpy(),
    }
    return {name: int(np.sum(found)) for name, found in is_broken.items() if np.any(found)}


def test_samples_break_no_mask_and_every_one_is_a_crystal() -> None:
    network = tiny_gpt()
    drawn = Sampler(network.gpt, DrawSettings()).draw(uniforms(network, 200, seed=5))
    assert violations(drawn.orbits, network.config.limits) == {}


@pytest.mark.slow
def test_ten_thousand_samples_break_no_mask_and_every_one_is_a_crystal() -> None:
    limits = GPTLimits(max_atoms=12, max_orbits=4, max_elements=3)
    network = tiny_gpt(limits=limits)
    drawn = Sampler(network.gpt, DrawSettings()).draw(uniforms(network, 10_000, seed=5))
    assert len(drawn.orbits) == 10_000
    assert violations(drawn.orbits, limits) == {}
    # Bounds are reached, and the count would see one that is broken.
    tighter = GPTLimits(max_atoms=11, max_orbits=3, max_elements=2)
    assert set(violations(drawn.orbits, tighter)) == {"atoms", "orbits", "kinds of elements"}
    other = replace(drawn.orbits, position=drawn.orbits.position.flip(0), coords=drawn.orbits.coords + 1.0)
    assert {"letters of another group", "range of coordinates"} <= set(violations(other, limits))


def test_formulas_numbers_of_atoms_and_elements_come_out_exactly() -> None:
    network = tiny_gpt()
    kinds = [
        Wish(composition=((8, 8), (12, 2), (13, 4))),
        Wish(composition=((3, 1), (8, 4), (15, 1), (26, 1))),
        Wish(num_atoms=13),
        Wish(num_atoms=7, elements=(8, 22, 38), required=(22, 38)),
        Wish(required=(1, 55, 83, 92)),
        Wish(groups=(225, 227), composition=((8, 2), (12, 2))),
    ]
    drawn = Sampler(network.gpt, DrawSettings()).draw(uniforms(network, 72), wishes=Wishes.of(kinds * 12))
    for number, (found, group) in enumerate(
        zip(formulas(drawn), drawn.orbits.space_group.tolist(), strict=True)
    ):
        wish = kinds[number % len(kinds)]
        if wish.composition:
            assert found == dict(wish.composition)
        if wish.num_atoms:
            assert found.total() == wish.num_atoms
        assert set(wish.required) <= set(found)
        assert not wish.elements or set(found) <= set(wish.elements)
        assert not wish.groups or group in wish.groups


def test_the_letters_that_are_asked_are_those_of_the_orbits() -> None:
    network = tiny_gpt()
    letters = (0, 1, 6, 6)
    wish = Wish(groups=(62, 12), letters=letters, required=(8,))
    drawn = Sampler(network.gpt, DrawSettings()).draw(uniforms(network, 40), wishes=Wishes.of([wish] * 40))
    table = wyckoff_table()
    assert set(drawn.orbits.space_group.tolist()) == {12}  # Pnma has no letter g
    for one in drawn.orbits.unpack():
        assert tuple(one.position - table.first[one.space_group]) == letters
        assert 8 in one.element


def every_skeleton(group: int, atoms: int, elements: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
    """All skeletons of a group with at most so many atoms, by trying; letters from 0."""
    table = wyckoff_table()
    first, count = int(table.first[group]), int(table.count[group])
    found = set()
    waiting: list[tuple[tuple[int, int], ...]] = [()]
    while waiting:
        skeleton = waiting.pop()
        used = sum(int(table.num_images[first + letter]) for letter, _ in skeleton)
        for letter, z in product(range(count), elements):
            size = int(table.num_images[first + letter])
            last = skeleton[-1] if skeleton else (START, 0)
            if letter < last[0] or used + size > atoms:
                continue
            if letter == last[0] and (table.num_free[first + letter] == 0 or z < last[1]):
                continue
            found.add((*skeleton, (letter, z)))
            waiting.append((*skeleton, (letter, z)))
    return found


@pytest.mark.parametrize("group", [2, 4, 25, 62, 123, 186, 225])
@pytest.mark.parametrize(
    "needs",
    [
        Needs(atoms=6, is_exact=True, orbits=3),
        Needs(atoms=6, is_exact=True, orbits=6, missing=(3, 8)),
        Needs(atoms=6, orbits=2, missing=(3, 8)),
        Needs(atoms=6, is_exact=True, orbits=4, amounts=((3, 2), (8, 4))),
        Needs(atoms=4, is_exact=True, orbits=4, amounts=((3, 1), (8, 3))),
        Needs(atoms=6, orbits=6, missing=(8,), letters=(0, 1)),
    ],
)
def test_what_is_called_reachable_is_what_trying_all_skeletons_finds(group: int, needs: Needs) -> None:
    table = wyckoff_table()
    first = int(table.first[group])

    def fulfils(skeleton: tuple[tuple[int, int], ...]) -> bool:
        left = needs
        for letter, z in skeleton:
            if left.amounts is not None and z not in dict(left.amounts):
                return False
            if left.letters is not None and left.letters[:1] != (letter,):
                return False
            left = left.after(int(table.num_images[first + letter]), z)
            if left.amounts is not None and any(n < 0 for _, n in left.amounts):
                return False
        return left.is_fulfilled and left.orbits >= 0

    if needs.letters is not None and not has_letters(group, needs.letters):
        return
    complete = [one for one in every_skeleton(group, needs.atoms, (3, 8)) if fulfils(one)]
    starts = {one[:1] for one in complete}
    assert is_reachable(group, START, 0, needs) == bool(complete)
    allowed = choices(group, START, needs)
    assert {((letter, z),) for letter, z in np.argwhere(allowed).tolist() if z in (3, 8)} == starts


def test_a_wish_that_no_space_group_fulfils_is_refused() -> None:
    network = tiny_gpt()
    wish = Wish(groups=(227,), num_atoms=5)
    assert possible_groups(wish, 20, 20) == ()
    assert len(possible_groups(Wish(num_atoms=5), 20, 20)) > 50
    with pytest.raises(ValueError, match="must be possible in a space group"):
        Sampler(network.gpt, FREE).draw(uniforms(network, 1), wishes=Wishes.of([wish]))


def test_conditions_that_are_all_absent_are_the_unconditional_model() -> None:
    network = tiny_gpt(ConditionConfig(name="band_gap"))
    module = network.condition_module
    assert module is not None
    module.encoder("band_gap").set_statistics(1.0, 2.0)
    numbers = uniforms(network, 30)
    hidden = module({"band_gap": torch.ones(30)}, {"band_gap": torch.zeros(30, dtype=torch.bool)}).vector
    absent = module.absent(30).vector
    assert hidden.equal(absent)
    one, other = (Sampler(network.gpt, FREE).draw(numbers, condition=told) for told in (hidden, absent))
    assert one.orbits.coords.equal(other.orbits.coords)
    assert one.log_prob.equal(other.log_prob)
    assert (rescored(network, one.orbits) - one.log_prob).abs().max() < 1e-4


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional_model() -> None:
    network = tiny_gpt()
    numbers = uniforms(network, 40)
    told, absent = torch.randn(40, 32, generator=torch.Generator().manual_seed(2)), torch.zeros(32)
    draw = {
        scale: Sampler(network.gpt, DrawSettings(guidance=scale)).draw(numbers, condition=told, absent=absent)
        for scale in (0.0, 1.0, 3.0)
    }
    plain = Sampler(network.gpt, DrawSettings()).draw(numbers, condition=told)
    without = Sampler(network.gpt, DrawSettings()).draw(numbers)
    assert draw[1.0].orbits.coords.equal(plain.orbits.coords)
    assert draw[0.0].orbits.element.equal(without.orbits.element)
    assert not draw[3.0].orbits.space_group.equal(plain.orbits.space_group)
    conditional, unconditional = torch.randn(2, 4, 5).log_softmax(-1)
    assert torch.allclose(guided([conditional, unconditional], 2.0), 2 * conditional - unconditional)


def test_choices_follow_their_probabilities_and_low_temperature_and_top_p_take_the_likeliest() -> None:
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7]).log().expand(20_000, 4)
    numbers = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    index, log = choose(logits, numbers)
    assert torch.bincount(index).tolist() == pytest.approx([2_000, 4_000, 0, 14_000], abs=2)
    assert log.exp().unique().tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert set(choose(logits, numbers, temperature=0.01)[0].tolist()) == {3}
    assert set(choose(logits, numbers, top_p=0.5)[0].tolist()) == {3}
    index, log = choose(logits, numbers, top_p=0.8)
    assert set(index.tolist()) == {1, 3}
    assert log.exp().unique().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_small_budget_leaves_out_groups_whose_smallest_position_is_larger() -> None:
    network = tiny_gpt(limits=GPTLimits(max_atoms=4, max_orbits=4, max_elements=2))
    drawn = Sampler(network.gpt, DrawSettings()).draw(uniforms(network, 400))
    assert int(drawn.orbits.num_atoms.max()) <= 4
    assert drawn.orbits.element.max() < NUM_SYMBOLS
