"""Coverage against loops over all pairs, and the case in which its two readings differ."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentite.metrics import coverage as module
from latentite.metrics.coverage import Cutoffs, FingerprintSet, calibrated_cutoffs, coverage


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
