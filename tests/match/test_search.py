"""Verdicts of `find_matches` are those of the plain matcher, whatever the filters and the number of workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from known_crystals import rock_salt, rutile, zinc_blende
from latentite.crystal_arrays import CrystalArrays
from latentite.data.readers.rows import Row, read
from latentite.match import search
from latentite.match.compare import Comparable, Comparer, fits
from latentite.match.reduced import (
    LOOSE,
    STRICT,
    pair_rms,
    reduce_crystals,
    structure_of,
    why_not_comparable,
)
from latentite.match.search import find_matches

SETTINGS = (STRICT, LOOSE)


def arrays(structure: Structure) -> CrystalArrays:
    return CrystalArrays(np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix)


def prototypes() -> list[Structure]:
    """Rock salt, caesium chloride and zinc blende of one formula, and two others."""
    return [
        rock_salt("Na", "Cl", 5.6),
        Structure(Lattice.cubic(3.4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        zinc_blende("Na", "Cl", 6.0),
        rock_salt("Mg", "O", 4.2),
        rutile(4.6, 2.95),
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


def test_verdicts_equal_those_of_the_plain_matcher() -> None:
    crystals, reference = a_mixed_set(1, 24), a_mixed_set(2, 8)
    found = find_matches([*map(arrays, crystals)], [*map(arrays, reference)], settings=SETTINGS, workers=1)
    place = {id(structure): position for position, structure in enumerate(crystals)}
    for settings in SETTINGS:
        matcher = settings.build()
        groups = matcher.group_structures(crystals)
        first = {place[id(s)]: place[id(group[0])] for group in groups for s in group}
        assert 1 < len(groups) < len(crystals)
        for position, verdict in enumerate(found.verdicts[settings.name]):
            assert verdict is not None
            expected = first[position] if first[position] != position else None
            assert verdict.duplicate_of == expected
            matched = next(
                (i for i, one in enumerate(reference) if matcher.fit(one, crystals[position])), None
            )
            assert verdict.reference == matched


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
    flat = CrystalArrays(good.atomic_numbers, good.frac_coords, good.lattice * 0.1)
    found = find_matches([flat, good, good], [flat, good], settings=(STRICT,), workers=1)
    assert list(found.failures) == [0]
    assert "Å^3 per atom" in found.failures[0]
    assert list(found.reference_failures) == [0]
    verdicts = found.verdicts["strict"]
    assert verdicts[0] is None
    assert [v.duplicate_of for v in verdicts[1:] if v] == [None, 1]
    assert [v.reference for v in verdicts[1:] if v] == [1, 1]


def test_needles_are_not_compared_but_plain_cells_given_skew_are() -> None:
    """An edge of 0.005 Å passes for its volume, and took all memory when two of its formula met in a matcher."""
    numbers, coords = np.array([11, 17]), np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    thin, long = np.diag([0.005, 1600.0, 10.0]), np.diag([0.5, 0.5, 14_000.0])
    needles = [CrystalArrays(numbers, coords, cell) for cell in (thin, thin * 1.01, long)]
    for cell in (
        needle.lattice for needle in needles
    ):  # first of all, so that nothing is compared where this fails
        assert "lattice vectors from" in (why_not_comparable(coords, cell) or "")
    cubic = arrays(prototypes()[1])
    shear = np.array([[1.0, 0.0, 0.0], [100.0, 1.0, 0.0], [0.0, 15.0, 1.0]])
    skew = CrystalArrays(
        cubic.atomic_numbers, cubic.frac_coords @ np.linalg.inv(shear), shear @ cubic.lattice
    )
    assert why_not_comparable(skew.frac_coords, skew.lattice) is None
    found = find_matches([*needles, cubic, skew], [cubic], settings=(STRICT,), workers=1)
    assert sorted(found.failures) == [0, 1, 2]
    assert [v and v.duplicate_of for v in found.verdicts["strict"]] == [None, None, None, None, 3]
    slab = Lattice.tetragonal(3.0, 100.0).matrix
    assert why_not_comparable(coords, slab) is None


def test_progress_counts_every_structure() -> None:
    crystals = [arrays(one) for one in prototypes()]
    told: list[int] = []
    find_matches(crystals, (), settings=(STRICT,), workers=1, advance=told.append)
    assert sum(told) == len(crystals)
    assert structure_of(crystals[0]).composition.reduced_formula == "NaCl"


class Kept:
    """A store in memory that remembers what it was asked."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get_many(self, hashes: Sequence[str]) -> dict[str, Any]:
        return {key: self.values[key] for key in hashes if key in self.values}

    def put_many(self, values: Mapping[str, Any]) -> None:
        self.values |= values


def test_many_of_one_formula_walk_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = [arrays(one) for one in a_mixed_set(4, 40)]
    whole = find_matches(crystals, settings=SETTINGS, workers=1)
    monkeypatch.setattr(search, "_BLOCK", 4)
    monkeypatch.setattr(search, "_PAIRS", 6)
    monkeypatch.setattr(search, "_FEWEST", 1)
    told: list[int] = []
    assert find_matches(crystals, settings=SETTINGS, workers=2, advance=told.append) == whole
    assert sum(told) == len(crystals)
    assert max(told) < len(crystals) / 2  # progress is told within a formula, too


def test_reduced_references_are_kept_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    reference = [arrays(disguised(one, rng, noise=0.0)) for one in prototypes()]
    crystals = [arrays(one) for one in a_mixed_set(5, 12)]
    hashes, store = [str(place) for place in range(len(reference))], Kept()
    fresh = reduce_crystals(reference, workers=1)
    again = reduce_crystals(reference, hashes=hashes, store=store, workers=1)
    assert set(store.values) == set(hashes)
    kept = reduce_crystals(reference, hashes=hashes, store=store, workers=1)
    for one, two, three in zip(fresh, again, kept, strict=True):
        assert not isinstance(one, str)
        for a, b, c in zip(*map(astuple, (one, two, three)), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    plain = find_matches(crystals, reference, settings=SETTINGS, workers=1)
    assert (
        find_matches(crystals, reference, settings=SETTINGS, workers=1, reference_hashes=hashes, store=store)
        == plain
    )


def test_a_damaged_value_of_the_store_is_computed_anew(rocksalt: CrystalArrays) -> None:
    store = Kept()
    fresh = reduce_crystals([rocksalt], workers=1)[0]
    for damage in ([[11], [[0.0, 0.0]], []], 3, [[11, 17], [[0.0] * 3] * 2, [[float("nan")] * 3] * 3]):
        store.values["a"] = damage
        found = reduce_crystals([rocksalt], hashes=["a"], store=store, workers=1)[0]
        assert not isinstance(found, str)
        assert not isinstance(fresh, str)
        np.testing.assert_array_equal(found.frac_coords, fresh.frac_coords)


def compared(pairs: Sequence[tuple[CrystalArrays, CrystalArrays]]) -> tuple[int, int]:
    """How many pairs match strictly, and how often the matcher was asked; every verdict is the matcher's."""
    comparer = Comparer(SETTINGS)
    matchers = {one.name: one.build() for one in SETTINGS}
    matched = 0
    for first, second in pairs:
        found = comparer.matching(Comparable(first), Comparable(second), {*matchers})
        structures = structure_of(first), structure_of(second)
        expected = {
            name for name, one in matchers.items() if one.fit(*structures, skip_structure_reduction=True)
        }
        assert set(found) == expected
        matched += "strict" in expected
    return matched, comparer.asked


def test_verdicts_of_real_pairs_are_those_of_the_matcher_in_both_orders(shared_data: Path) -> None:
    rows = [row for row in read(shared_data / "mp_20_biternary" / "val.csv.gz") if isinstance(row, Row)]
    groups: dict[tuple[int, ...], list[CrystalArrays]] = defaultdict(list)
    for row in rows:
        key = tuple(sorted(row.atomic_numbers.tolist()))
        groups[key].append(CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice))
    alike = [group for group in groups.values() if len(group) > 1 and group[0].num_atoms <= 12]
    pairs: list[tuple[CrystalArrays, CrystalArrays]] = []
    for group in alike[:40]:
        one, two = reduce_crystals(group[:2], workers=1)
        if not isinstance(one, str) and not isinstance(two, str) and one.num_atoms == two.num_atoms:
            pairs += [(one, two), (two, one)]
    matched, asked = compared(pairs)
    assert 0 < matched < len(pairs)
    assert asked < len(pairs) / 4


def test_verdicts_of_disguised_pairs_are_those_of_the_matcher() -> None:
    rng = np.random.default_rng(7)
    np.random.seed(7)
    made: list[CrystalArrays] = []
    for _ in range(2):
        for one in prototypes():
            made += [
                arrays(one),
                arrays(
                    disguised(one, rng, noise=float(rng.choice([0.1, 0.4, 0.8]))).scale_lattice(one.volume)
                ),
            ]
    reduced = [one for one in reduce_crystals(made, workers=1) if not isinstance(one, str)]
    pairs = [
        (one, other)
        for one, other in combinations(reduced, 2)
        if sorted(one.atomic_numbers.tolist()) == sorted(other.atomic_numbers.tolist())
    ][:30]
    matched, _ = compared(pairs)
    assert 0 < matched < len(pairs)


def test_a_tie_is_left_to_the_matcher() -> None:
    """A second atom exactly midway between two places of the first crystal may go to either."""
    lattice = np.diag((2.4, 4.0, 6.0))
    numbers = np.array([11, 17, 17])
    first = CrystalArrays(numbers, np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.4], [0.5, 0.5, 0.6]]), lattice)
    second = CrystalArrays(numbers, np.array([[0.0, 0.0, 0.0], [0.4, 0.5, 0.5], [0.6, 0.5, 0.5]]), lattice)
    assert fits(Comparable(first), Comparable(second), LOOSE) is None
    compared([(first, second), (second, first), (first, first)])


def test_the_reference_is_the_first_argument_of_a_matcher_that_is_not_symmetric() -> None:
    """Two lattices of one atom that `fit` takes for the same in one order only (found by trying random ones)."""
    wide, narrow = (
        CrystalArrays(np.array([14]), np.zeros((1, 3)), np.array(rows))
        for rows in (
            [[3.4, -0.66, 0.77], [0.11, 2.0, 0.44], [0.77, 0.14, 3.0]],
            [[3.01, -0.73, 0.68], [0.12, 2.14, 0.54], [0.64, 0.14, 3.4]],
        )
    )
    matcher = STRICT.build()
    one, other = structure_of(wide), structure_of(narrow)
    assert (matcher.fit(one, other), matcher.fit(other, one)) == (True, False)
    for first, second, is_match in ((wide, narrow, True), (narrow, wide, False)):
        as_reference = find_matches([second], [first], settings=(STRICT,), workers=1).verdicts["strict"][0]
        as_earlier = find_matches([first, second], settings=(STRICT,), workers=1).verdicts["strict"][1]
        assert as_reference is not None
        assert as_earlier is not None
        assert (as_reference.reference == 0) is (as_earlier.duplicate_of == 0) is is_match


def test_rms_of_a_pair_has_its_known_value() -> None:
    """One of two unlike atoms moved by d: each is d/2 from the middle, in units of (V/2)^(1/3)."""
    cell = 4.0 * np.eye(3)
    first = Structure(cell, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    second = Structure(cell, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.55]])
    assert pair_rms(first, second, STRICT) == pytest.approx(0.1 / 32.0 ** (1.0 / 3.0), abs=1e-6)
    assert pair_rms(first, Structure(cell, ["Cs", "Br"], first.frac_coords), STRICT) is None
    assert pair_rms(first, Structure(0.1 * cell, ["Cs", "Cl"], first.frac_coords), STRICT) is None
