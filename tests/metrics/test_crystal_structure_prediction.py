"""Structure prediction: plain `get_rms_dist`, and rates by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
from pymatgen.core.structure_matcher import StructureMatcher

from latentite.crystal_arrays import CrystalArrays
from latentite.match.reduced import LOOSE, STRICT, MatcherSettings, structure_of
from latentite.metrics.crystal_structure_prediction import (
    best_match_rate,
    match_rate,
    sample_distances,
)


def disturbed(crystal: CrystalArrays, rng: np.random.Generator, size: float) -> CrystalArrays:
    numbers, coords, lattice = astuple(crystal)
    return CrystalArrays(numbers, coords + rng.normal(0, size, coords.shape), lattice)


@pytest.mark.parametrize("settings", [LOOSE, STRICT])
def test_distances_equal_the_plain_matcher(
    settings: MatcherSettings, make_random_crystals: Callable[..., list[CrystalArrays]]
) -> None:
    rng = np.random.default_rng(0)
    targets = make_random_crystals(10, max_atoms=6)
    samples = [[disturbed(target, rng, size) for size in (0.0, 0.05, 0.3)] for target in targets]
    found = sample_distances(targets, samples, settings=settings, workers=1)
    matcher = StructureMatcher(settings.ltol, settings.stol, settings.angle_tol)
    for i, target in enumerate(targets):
        for j, sample in enumerate(samples[i]):
            expected = matcher.get_rms_dist(structure_of(sample), structure_of(target))
            assert math.isnan(found[i, j]) == (expected is None)
            if expected is not None:
                assert found[i, j] == pytest.approx(expected[0], abs=1e-9)
    assert 0 < np.isnan(found).sum() < found.size  # the case tells them apart


def test_missing_samples_other_compositions_and_collapsed_cells_do_not_match(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    row = [
        None,
        perovskite,
        CrystalArrays(numbers, coords, lattice * 0.01),
        CrystalArrays(numbers, coords * np.nan, lattice),
        rocksalt,
    ]
    found = sample_distances([rocksalt], [row], workers=1)
    assert np.isnan(found[0, :4]).all()
    assert found[0, 4] == pytest.approx(0, abs=1e-6)


def test_the_primitive_cell_of_the_target_matches_it(rocksalt: CrystalArrays) -> None:
    cell = 2.82 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    primitive = CrystalArrays(np.array([11, 17]), np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]), cell)
    assert np.isfinite(sample_distances([rocksalt], [[primitive]], workers=1)).all()


NAN = math.nan
DISTANCES = np.array([[0.1, 0.3, 0.2], [NAN, 0.4, NAN], [NAN, NAN, NAN], [0.2, NAN, 0.0]])


def test_rates_at_one_and_best_of_k_by_hand() -> None:
    one, two, three = (match_rate(DISTANCES, k=k) for k in (1, 2, 3))
    assert [(r.rate.numerator, r.rate.denominator) for r in (one, two, three)] == [(2, 4), (3, 4), (3, 4)]
    assert one.rmse == pytest.approx((0.1 + 0.2) / 2)
    assert two.rmse == pytest.approx((0.1 + 0.4 + 0.2) / 3)
    assert three.rmse == pytest.approx((0.1 + 0.4 + 0.0) / 3)
    assert three.corrected_rmse == pytest.approx((0.1 + 0.4 + 0.5 + 0.0) / 4)
    assert match_rate(DISTANCES) == three
    assert match_rate(DISTANCES, stol=0.7).corrected_rmse == pytest.approx((0.1 + 0.4 + 0.7 + 0.0) / 4)


def test_invalid_pairs_do_not_match_but_stay_in_the_denominator() -> None:
    valid = np.array([[False, True, True], [True] * 3, [True] * 3, [True, True, False]])
    found = match_rate(DISTANCES, is_valid=valid)
    assert (found.rate.numerator, found.rate.denominator) == (3, 4)
    assert found.rmse == pytest.approx((0.2 + 0.4 + 0.2) / 3)
    assert match_rate(DISTANCES, k=1, is_valid=valid).rate.numerator == 1


def test_nothing_matched_and_nothing_there() -> None:
    nothing = best_match_rate(np.full(3, NAN))
    assert (nothing.rate.value, nothing.corrected_rmse) == (0.0, 0.5)
    assert math.isnan(nothing.rmse)
    assert math.isnan(best_match_rate(np.zeros(0)).corrected_rmse)
    assert sample_distances([], []).shape == (0, 0)


def test_metre_counts_polymorphs_that_were_generated_under_another_name(rocksalt: CrystalArrays) -> None:
    """Two polymorphs, two samples in exchanged order: no pair matches, everyone in the reference is matched."""
    numbers, _, _ = astuple(rocksalt)
    caesium_type = CrystalArrays(np.array([11, 17]), np.array([[0.0] * 3, [0.5] * 3]), 3.4 * np.eye(3))
    assert len(numbers) == 8
    reference, generated = [rocksalt, caesium_type], [caesium_type, rocksalt]
    pairs = sample_distances(reference, [[sample] for sample in generated], workers=1)
    assert match_rate(pairs).rate.numerator == 0
    metre = match_rate(sample_distances(reference, [generated] * 2, workers=1))
    assert (metre.rate.numerator, metre.rate.denominator) == (2, 2)
    assert metre.corrected_rmse == pytest.approx(0, abs=1e-6)
    half = match_rate(sample_distances(reference, [[rocksalt, rocksalt]] * 2, workers=1))
    assert half.rate.value == 0.5
    assert half.corrected_rmse == pytest.approx(0.25, abs=1e-6)


def test_workers_do_not_change_the_result_and_progress_counts_all(
    rocksalt: CrystalArrays, perovskite: CrystalArrays
) -> None:
    rng = np.random.default_rng(3)
    targets = [rocksalt, perovskite] * 10
    samples = [[disturbed(target, rng, 0.03)] for target in targets]
    told: list[int] = []
    one = sample_distances(targets, samples, workers=1, advance=told.append)
    np.testing.assert_array_equal(one, sample_distances(targets, samples, workers=2))
    assert sum(told) == 20


@pytest.mark.usefixtures("no_shape_checks")
def test_nonsense_is_refused(rocksalt: CrystalArrays) -> None:
    with pytest.raises(ValueError, match="equally many samples, got 0 to 1"):
        sample_distances([rocksalt] * 2, [[rocksalt], []])
    with pytest.raises(ValueError, match="samples for each target, got 1 for 2"):
        sample_distances([rocksalt] * 2, [[rocksalt]])
    with pytest.raises(ValueError, match="k must be 1 to 3"):
        match_rate(DISTANCES, k=4)
    with pytest.raises(ValueError, match="is_valid"):
        match_rate(DISTANCES, is_valid=np.ones((4, 2), dtype=bool))
