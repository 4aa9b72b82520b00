"""Shapes are checked in more rooms than types; stand-ins for other types pass outside of the strict ones."""

from __future__ import annotations

import importlib.util
from collections import Counter

import jaxtyping
import numpy as np
import pytest
from jaxtyping import Float

import shape_checks
from latentite.metrics.distributions import wasserstein


def test_every_module_that_writes_shapes_in_these_rooms_is_checked() -> None:
    names = shape_checks.modules_with_shapes()
    specs = [importlib.util.find_spec(name) for name in names]
    loaders = Counter(type(spec.loader).__name__ for spec in specs if spec is not None)
    assert loaders == {"_JaxtypingLoader": len(names)}


def test_an_array_of_another_shape_is_refused_outside_of_the_strict_rooms_too() -> None:
    assert "latentite.metrics" not in shape_checks.STRICT
    assert wasserstein(np.zeros(3), np.ones(5)) == 1.0
    with pytest.raises(jaxtyping.TypeCheckError, match="reference"):
        wasserstein(np.zeros(3), np.ones((5, 1)))


def test_only_arrays_are_checked_where_tests_pass_stand_ins() -> None:
    def norm(vectors: Float[np.ndarray, "row 3"], order: int) -> Float[np.ndarray, " row"]:
        return np.linalg.norm(vectors, ord=order, axis=1)

    # As jaxtyping gives it: with annotations that are no longer text.
    norm.__annotations__ = {
        "vectors": Float[np.ndarray, "row 3"],
        "order": int,
        "return": Float[np.ndarray, " row"],
    }
    checked = jaxtyping.jaxtyped(typechecker=shape_checks.check_shapes)(norm)
    np.testing.assert_array_equal(checked(np.ones((2, 3)), np.inf), [1.0, 1.0])  # type: ignore[arg-type]
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(np.ones((3, 2)), 2)
