"""Distributions, Fréchet distance, diversity and coverage, against references and loops over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigvalsh, sqrtm

from latentite.metrics import distributions as module
from latentite.metrics.distributions import (
    Cutoffs,
    FingerprintSet,
    calibrated_cutoffs,
    coverage,
    entropy_bits,
    fit_gaussian,
    frechet_distance,
    frechet_diversity,
    jensen_shannon_bits,
    vendi_score,
    wasserstein,
)

values = st.lists(st.floats(-50, 50), min_size=1, max_size=30).map(np.array)


@settings(max_examples=50, deadline=None)
@given(first=values, second=values)
def test_wasserstein_is_the_area_between_the_cumulative_distributions(
    first: np.ndarray, second: np.ndarray
) -> None:
    grid = np.sort(np.concatenate([first, second]))
    below = [(side[None, :] <= grid[:-1, None]).mean(-1) for side in (first, second)]
    area = float((np.abs(below[0] - below[1]) * np.diff(grid)).sum())
    assert wasserstein(first, second) == pytest.approx(area, abs=1e-9)


def test_wasserstein_of_a_shift_is_the_shift_and_leaves_out_what_is_not_finite() -> None:
    base = np.random.default_rng(0).normal(size=100)
    assert wasserstein(np.append(base + 3, np.nan), base) == pytest.approx(3)
    assert math.isnan(wasserstein(np.array([np.inf]), base))


def test_entropy_in_bits() -> None:
    assert entropy_bits("abcdabcd") == pytest.approx(2)
    assert entropy_bits("aaaa") == 0
    assert math.isnan(entropy_bits([]))


def test_jensen_shannon_divergence_is_zero_for_equal_and_one_for_disjoint_names() -> None:
    assert jensen_shannon_bits("aab", "aabaab") == pytest.approx(0)
    assert jensen_shannon_bits([1, 2], [3]) == pytest.approx(1)
    # By hand: shares (1, 0) and (1/2, 1/2): H(3/4, 1/4) - 1/2.
    assert jensen_shannon_bits("a", "ab") == pytest.approx(0.8112781 - 0.5)
    assert math.isnan(jensen_shannon_bits("a", ""))


def by_sqrtm(first: np.ndarray, second: np.ndarray) -> float:
    covariances = [np.cov(side, rowvar=False) for side in (first, second)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    shift = ((first.mean(0) - second.mean(0)) ** 2).sum()
    return float(shift + np.trace(covariances[0] + covariances[1] - 2 * root))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    return frechet_distance(fit_gaussian(first), fit_gaussian(second))


@given(seed=st.integers(0, 2**32 - 1), num_features=st.integers(2, 8))
def test_distance_equals_scipys_matrix_square_root(seed: int, num_features: int) -> None:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(2, num_features, num_features))
    first = rng.normal(size=(60, num_features)) @ mixing[0] + rng.normal(size=num_features)
    second = rng.normal(size=(50, num_features)) @ mixing[1]
    assert distance(first, second) == pytest.approx(by_sqrtm(first, second), rel=1e-6, abs=1e-6)


def test_one_dimension_has_a_closed_form() -> None:
    """F = (m1 - m2)^2 + (s1 - s2)^2."""
    first, second = np.array([[0.0], [2.0]]), np.array([[5.0], [5.0], [11.0]])
    expected = (1 - 7) ** 2 + (np.sqrt(2) - np.sqrt(12)) ** 2
    assert distance(first, second) == pytest.approx(expected)


def test_fewer_rows_than_features_are_no_trouble() -> None:
    """Covariances of rank 4 and 6 in 50 dimensions, where C1 C2 has 44 eigenvalues that are 0: scaling all features by
    3 about the mean has the closed form (3 - 1)^2 tr C, and a set is at distance 0 from itself."""
    rng = np.random.default_rng(0)
    for count in (5, 7):
        features = rng.normal(size=(count, 50))
        centred = features - features.mean(0)
        trace = (centred**2).sum() / (count - 1)
        assert distance(features, features.mean(0) + 3 * centred) == pytest.approx(4 * trace)
        assert distance(features, features) == pytest.approx(0, abs=1e-9)


def test_distance_does_not_depend_on_sides_order_or_rotation_of_the_features() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) + 0.3
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    expected = distance(first, second)
    assert distance(second, first) == pytest.approx(expected)
    assert distance(first[::-1] @ rotation, second @ rotation) == pytest.approx(expected)


def test_rows_without_features_are_left_out_and_too_few_refused() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(20, 3)), rng.normal(size=(20, 3))
    assert distance(np.vstack([first, [np.nan, 0, 0]]), second) == distance(first, second)
    with pytest.raises(ValueError, match="at least two rows"):
        fit_gaussian(np.array([[1.0, 2.0], [np.inf, 0.0]]))
    with pytest.raises(ValueError, match="equally many features, got 3 and 2"):
        distance(first, second[:, :2])


def test_diversity_is_one_at_distance_zero_and_falls() -> None:
    assert frechet_diversity(0.0) == 1.0
    assert frechet_diversity(3.0) == 0.25


def by_kernel(kernel: np.ndarray) -> float:
    values = eigvalsh(kernel / len(kernel))
    return math.exp(-sum(value * math.log(value) for value in values if value > 1e-14))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), num_features=st.integers(1, 12))
def test_cosine_score_is_that_of_the_whole_kernel_for_few_and_many_rows(
    seed: int, count: int, num_features: int
) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, num_features))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert vendi_score(rows) == pytest.approx(by_kernel(unit @ unit.T), rel=1e-8)


def test_score_counts_what_is_different() -> None:
    """m groups of equal size, alike within and orthogonal between: the eigenvalues are m times 1/m."""
    rows = np.repeat(np.eye(5), 7, axis=0) * np.arange(1, 36)[:, None]
    assert vendi_score(rows) == pytest.approx(5)
    assert vendi_score(rows[:7]) == pytest.approx(1)


def test_unequal_groups_have_the_entropy_of_their_shares() -> None:
    rows = np.vstack([np.repeat([[1.0, 0.0]], 3, axis=0), [[0.0, 2.0]]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert vendi_score(rows) == pytest.approx(expected)


def test_rows_of_zeros_resemble_nothing_and_rows_without_numbers_do_not_count() -> None:
    rows = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [np.nan, 1.0]])
    assert vendi_score(rows) == pytest.approx(3)
    assert math.isnan(vendi_score(np.full((3, 2), np.nan)))


def random_set(rng: np.random.Generator, count: int) -> FingerprintSet:
    return FingerprintSet(structure=rng.normal(size=(count, 3)), composition=rng.normal(size=(count, 2)) * 5)


def nearest(side: np.ndarray, other: np.ndarray) -> list[float]:
    return [min(math.dist(row, point) for point in other) for row in side]


@given(seed=st.integers(0, 2**32 - 1), counts=st.tuples(st.integers(1, 25), st.integers(1, 25)))
def test_rates_are_those_of_loops_over_all_pairs(seed: int, counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    one, other = random_set(rng, counts[0]), random_set(rng, counts[1])
    cutoffs = Cutoffs(structure=1.0, composition=5.0)

    def joint(side: FingerprintSet, target: FingerprintSet) -> int:
        return sum(
            any(
                math.dist(s, ts) <= 1.0 and math.dist(c, tc) <= 5.0
                for ts, tc in zip(target.structure, target.composition, strict=True)
            )
            for s, c in zip(side.structure, side.composition, strict=True)
        )

    def separate(side: FingerprintSet, target: FingerprintSet) -> int:
        pairs = zip(
            nearest(side.structure, target.structure),
            nearest(side.composition, target.composition),
            strict=True,
        )
        return sum(s <= 1.0 and c <= 5.0 for s, c in pairs)

    found = coverage(one, other, cutoffs)
    assert found.recall.numerator == joint(other, one)
    assert found.precision.numerator == joint(one, other)
    assert found.recall_separate.numerator == separate(other, one)
    assert found.precision_separate.numerator == separate(one, other)
    assert (found.precision.denominator, found.recall.denominator) == counts
    assert found.structure_recall_distance == pytest.approx(np.mean(nearest(other.structure, one.structure)))
    assert found.composition_precision_distance == pytest.approx(
        np.mean(nearest(one.composition, other.composition))
    )


def test_separate_reading_takes_the_two_distances_from_different_crystals() -> None:
    """One generated crystal has the structure of the reference, another its composition, none has both."""
    generated = FingerprintSet(structure=np.array([[0.0], [9.0]]), composition=np.array([[9.0], [0.0]]))
    reference = FingerprintSet(structure=np.array([[0.0]]), composition=np.array([[0.0]]))
    found = coverage(generated, reference, Cutoffs(structure=1, composition=1))
    assert found.recall.value == 0.0
    assert found.recall_separate.value == 1.0
    assert found.precision.value == found.precision_separate.value == 0.0


def test_a_set_covers_itself_at_cut_offs_of_zero() -> None:
    same = random_set(np.random.default_rng(0), 40)
    found = coverage(same, same, Cutoffs(structure=0, composition=0))
    assert found.recall.value == found.precision.value == 1.0


def test_crystals_without_fingerprints_are_near_nothing_but_count() -> None:
    rng = np.random.default_rng(1)
    reference = random_set(rng, 10)
    structure = np.vstack([reference.structure[:4], np.full((2, 3), np.nan)])
    generated = FingerprintSet(structure=structure, composition=reference.composition[:6])
    found = coverage(generated, reference, Cutoffs(structure=0.0, composition=0.0))
    assert (found.precision.numerator, found.precision.denominator) == (4, 6)
    assert (found.recall.numerator, found.recall.denominator) == (4, 10)
    nothing = FingerprintSet(structure=np.full((3, 3), np.nan), composition=np.zeros((3, 2)))
    found = coverage(nothing, reference, Cutoffs(structure=9, composition=99))
    assert found.recall.value == found.precision.value == 0.0
    assert math.isnan(found.structure_recall_distance)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    one, other = random_set(rng, 33), random_set(rng, 17)
    cutoffs = Cutoffs(structure=0.8, composition=4)
    whole = coverage(one, other, cutoffs)
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", 50)
    assert coverage(one, other, cutoffs) == whole


def test_calibrated_cut_offs_are_quantiles_of_distances_to_the_training_set() -> None:
    """Held-out points at 0.1, 0.2, ... 1.0 from the only training point."""
    training = FingerprintSet(structure=np.zeros((1, 1)), composition=np.zeros((1, 1)))
    steps = np.arange(1, 11)[:, None] / 10
    held_out = FingerprintSet(structure=steps, composition=10 * steps)
    cutoffs = calibrated_cutoffs(training, held_out, quantile=0.5)
    assert (cutoffs.structure, cutoffs.composition) == (pytest.approx(0.55), pytest.approx(5.5))
    assert coverage(held_out, training, cutoffs).precision.value == 0.5


@pytest.mark.usefixtures("no_shape_checks")
def test_nonsense_is_refused() -> None:
    rng = np.random.default_rng(3)
    one = random_set(rng, 3)
    with pytest.raises(ValueError, match="same crystals, got 3 and 2 rows"):
        FingerprintSet(structure=one.structure, composition=one.composition[:2])
    with pytest.raises(
        ValueError, match="structure fingerprints must have equally many features, got 3 and 2"
    ):
        coverage(
            one,
            FingerprintSet(structure=one.structure[:, :2], composition=one.composition),
            Cutoffs(structure=1, composition=1),
        )
    with pytest.raises(ValueError, match="quantile"):
        calibrated_cutoffs(one, one, quantile=0.0)
    with pytest.raises(ValueError, match="structure cut-off must be at least 0"):
        Cutoffs(structure=-1, composition=1)
