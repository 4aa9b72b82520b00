"""Errors of predicted properties, against definitions and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentite.metrics.regression import classification_metrics, regression_metrics


def test_known_answers():
    labels = np.array([1.0, 2.0, np.nan, 6.0])
    found = regression_metrics(labels, np.array([2.0, 2.0, 99.0, 4.0]))
    # errors 1, 0, -2; mean label 3, squares about it 4 + 1 + 9
    assert found["mae"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    assert found["r2"] == pytest.approx(1 - 5 / 14)


def test_nothing_is_said_without_labels_and_no_r2_without_spread():
    assert regression_metrics(np.array([np.nan]), np.array([1.0])) == {}
    assert classification_metrics(np.array([np.nan]), np.array([1.0])) == {}
    assert math.isnan(regression_metrics(np.ones(3), np.zeros(3))["r2"])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(-10, 10))
def test_a_constant_offset_is_its_own_error(values, offset):
    labels = np.array(values)
    found = regression_metrics(labels, labels + offset)
    assert found["mae"] == pytest.approx(abs(offset), abs=1e-9)
    assert found["rmse"] == pytest.approx(abs(offset), abs=1e-9)


def test_accuracy_counts_labelled_crystals():
    found = classification_metrics(np.array([0.0, 1.0, np.nan, 2.0]), np.array([0.0, 2.0, 1.0, 2.0]))
    assert found == {"accuracy": pytest.approx(2 / 3)}
