"""Shapes are checked in every module that writes them; stand-ins for other types pass outside of the strict ones."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float

import shape_checks
from latentite.diffusion.guidance import unconditional
from latentite.metrics.distributions import wasserstein
from latentite.rl.update import minibatches

SHAPES = "Bool|Float|Int|Real"
"""What our annotations take from jaxtyping."""


def sources() -> dict[str, str]:
    """The text of every module of ours, by its path inside the package."""
    paths = sorted(shape_checks.PACKAGE.rglob("*.py"))
    return {
        path.relative_to(shape_checks.PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths
    }


def test_every_module_that_writes_shapes_is_checked() -> None:
    names = shape_checks.modules_with_shapes()
    specs = [importlib.util.find_spec(name) for name in names]
    loaders = Counter(type(spec.loader).__name__ for spec in specs if spec is not None)
    assert loaders == {"CheckedLoader": len(names)}
    texts = sources()
    aliases = {
        name
        for text in texts.values()
        for name in re.findall(rf"^(\w+) = .*\b(?:{SHAPES})\[", text, flags=re.MULTILINE)
    }
    assert aliases  # else the search for them has come out of step
    writes = re.compile(rf"\b(?:(?:{SHAPES})\[\w|import .*\b(?:{'|'.join(aliases)})\b)")
    assert len(names) == sum(bool("jaxtyping" in text or writes.search(text)) for text in texts.values())


def test_none_of_their_functions_and_data_classes_is_left_out() -> None:
    for path, text in sources().items():
        if "jaxtyping" not in text:
            continue
        tree = ast.parse(text)
        shape_checks.decorate(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.unparse(node.decorator_list[-1]) == shape_checks.DECORATOR, f"{path}: {node.name}"
            elif isinstance(node, ast.ClassDef) and any(
                "dataclass" in ast.unparse(d) for d in node.decorator_list
            ):
                assert ast.unparse(node.decorator_list[0]) == shape_checks.DECORATOR, f"{path}: {node.name}"


def test_every_shape_is_a_text() -> None:
    """jaxtyping passes over an annotation that it cannot read: two like `Float[Array, ...]` were never checked."""
    pattern = re.compile(rf"\b(?:{SHAPES})\[\s*[\w.]+,\s*(?!\s|[\"'])")
    assert pattern.search("Float[np.ndarray, ...]")
    assert not pattern.search('Float[np.ndarray, "..."]')
    assert {path: match[0] for path, text in sources().items() if (match := pattern.search(text))} == {}


def test_an_array_of_another_shape_is_refused_outside_of_the_strict_rooms_too() -> None:
    assert not shape_checks.is_strict("latentite.metrics.distributions")
    assert wasserstein(np.zeros(3), np.ones(5)) == 1.0
    with pytest.raises(jaxtyping.TypeCheckError, match="reference"):
        wasserstein(np.zeros(3), np.ones((5, 1)))


def test_arrays_of_diffusion_and_reinforcement_learning_are_checked() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="places"):
        minibatches(torch.zeros(2, 2, dtype=torch.int64), 4, 1, torch.Generator())
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        unconditional(lambda tokens, *_: tokens, torch.ones(2, dtype=torch.bool))


def test_only_arrays_are_checked_where_tests_pass_stand_ins() -> None:
    def norm(vectors: Float[np.ndarray, "row 3"], order: int) -> Float[np.ndarray, " row"]:
        return np.linalg.norm(vectors, ord=order, axis=1)

    loose, strict = (shape_checks.checked_at_its_calls(norm, strict=is_strict) for is_strict in (False, True))
    np.testing.assert_array_equal(loose(np.ones((2, 3)), np.inf), [1.0, 1.0])
    for checked in (loose, strict):
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(np.ones((3, 2)), 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="order"):
        strict(np.ones((2, 3)), np.inf)


def test_a_function_without_shapes_is_called_as_it_is_outside_of_the_strict_rooms() -> None:
    def twice(number: int) -> int:
        return 2 * number

    assert shape_checks.checked(twice, strict=False) is twice
    assert shape_checks.checked_at_its_calls(twice, strict=False)(1.5) == 3.0
