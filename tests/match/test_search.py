"""Verdicts of `find_matches` are those of the plain matcher, whatever the filters and the number of workers."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from latentite.data.cif import Arrays
from latentite.match.search import find_matches, structure_of
from latentite.match.settings import LOOSE, STRICT, MatcherSettings

SETTINGS = (STRICT, LOOSE)


def arrays(structure: Structure) -> Arrays:
    return np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix


def prototypes() -> list[Structure]:
    """Rock salt, caesium chloride and zinc blende of one formula, and two others."""
    return [
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure(Lattice.cubic(3.4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup("F-43m", Lattice.cubic(6.0), ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
        Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.2), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        Structure.from_spacegroup(
            "P4_2/mnm", Lattice.tetragonal(4.6, 2.95), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
        ),
    ]


def disguised(structure: Structure, rng: np.random.Generator, *, noise: float) -> Structure:
    """The same crystal in another cell, from another origin, its atoms in another order and moved a little."""
    cell = np.eye(3, dtype=int)
    cell[0, 1], cell[2, 0] = rng.integers(-2, 3, size=2)
    other = structure.copy()
    other.make_supercell(cell)
    if rng.random() < 0.4:
        other.make_supercell([2, 1, 1])
    coords = other.frac_coords + rng.random(3)
    order = rng.permutation(len(other))
    moved = Structure(other.lattice, [other.species[i] for i in order], coords[order])
    return moved.perturb(noise) if noise else moved


def a_mixed_set(seed: int, count: int) -> list[Structure]:
    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # `perturb` draws from numpy's global generator
    known = prototypes()
    return [
        disguised(known[rng.integers(len(known))], rng, noise=float(rng.choice([0.0, 0.1, 0.6])))
        for _ in range(count)
    ]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: one.name)
def test_verdicts_equal_those_of_the_plain_matcher(settings: MatcherSettings) -> None:
    crystals, reference = a_mixed_set(1, 24), a_mixed_set(2, 8)
    found = find_matches([*map(arrays, crystals)], [*map(arrays, reference)], settings=SETTINGS, workers=1)
    matcher = settings.build()
    groups = matcher.group_structures(crystals)
    place = {id(structure): position for position, structure in enumerate(crystals)}
    first = {place[id(s)]: place[id(group[0])] for group in groups for s in group}
    verdicts = found.verdicts[settings.name]
    assert 1 < len(groups) < len(crystals)
    for position, verdict in enumerate(verdicts):
        assert verdict is not None
        expected = first[position] if first[position] != position else None
        assert verdict.duplicate_of == expected
        matched = [i for i, one in enumerate(reference) if matcher.fit(one, crystals[position])]
        assert verdict.reference == (matched[0] if matched else None)


def test_other_cells_of_a_crystal_are_found_and_other_crystals_of_its_formula_are_not() -> None:
    rng = np.random.default_rng(0)
    reference = [arrays(one) for one in prototypes()]
    crystals = [arrays(disguised(one, rng, noise=0.0)) for one in prototypes()]
    found = find_matches(crystals, reference, settings=(STRICT,), workers=1).verdicts["strict"]
    assert [verdict.reference for verdict in found if verdict] == [0, 1, 2, 3, 4]
    assert all(verdict is not None and verdict.duplicate_of is None for verdict in found)


def test_the_number_of_workers_does_not_change_the_result() -> None:
    crystals = [arrays(one) for one in a_mixed_set(3, 16)]
    one, two = (find_matches(crystals, crystals[:5], settings=SETTINGS, workers=n) for n in (1, 2))
    assert one == two


def test_what_is_no_crystal_fails_alone_and_with_its_reason() -> None:
    good = arrays(prototypes()[1])
    flat = (good[0], good[1], good[2] * 0.1)
    found = find_matches([flat, good, good], [flat, good], settings=(STRICT,), workers=1)
    assert list(found.failures) == [0]
    assert "Å^3 per atom" in found.failures[0]
    assert list(found.reference_failures) == [0]
    verdicts = found.verdicts["strict"]
    assert verdicts[0] is None
    assert [v.duplicate_of for v in verdicts[1:] if v] == [None, 1]
    assert [v.reference for v in verdicts[1:] if v] == [1, 1]


def test_progress_counts_every_structure() -> None:
    crystals = [arrays(one) for one in prototypes()]
    told: list[int] = []
    find_matches(crystals, (), settings=(STRICT,), workers=1, advance=told.append)
    assert sum(told) == len(crystals)
    assert structure_of(crystals[0]).composition.reduced_formula == "NaCl"
