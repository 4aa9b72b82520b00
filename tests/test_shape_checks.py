"""Shapes are checked in every module that writes them; stand-ins for other types pass outside of the strict ones."""

from __future__ import annotations

import ast
import importlib.util
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

SHAPES = {"Bool", "Float", "Int", "Real"}


def trees() -> dict[str, ast.Module]:
    """The syntax of every module of ours, by its path inside the package."""
    paths = sorted(shape_checks.PACKAGE.rglob("*.py"))
    return {
        path.relative_to(shape_checks.PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


def path_of(module: str) -> str:
    """A module's path inside the package."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin.removeprefix(f"{shape_checks.PACKAGE}/")


def test_every_module_that_writes_shapes_is_checked() -> None:
    names = shape_checks.modules_with_shapes()
    specs = [importlib.util.find_spec(name) for name in names]
    loaders = Counter(type(spec.loader).__name__ for spec in specs if spec is not None)
    assert loaders == {"CheckedLoader": len(names)}


def test_none_of_their_functions_and_data_classes_is_left_out() -> None:
    """Nor a module that takes a shape's name from another one, without writing a shape itself."""
    modules = trees()
    checked = {path_of(name) for name in shape_checks.modules_with_shapes()}
    aliases = set()
    for path, tree in modules.items():
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and _names(statement.value) & SHAPES:
                aliases |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        shape_checks.decorate(tree.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert _names(node.decorator_list[-1]) == {shape_checks.DECORATOR}, f"{path}: {node.name}"
            elif isinstance(node, ast.ClassDef) and "dataclass" in map(_last_name, node.decorator_list):
                assert _names(node.decorator_list[0]) == {shape_checks.DECORATOR}, f"{path}: {node.name}"
    assert aliases  # else the search for them has come out of step
    for path, tree in modules.items():
        taken = {
            name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
        }
        if taken & (SHAPES | aliases):
            assert path in checked


def test_every_shape_is_a_text() -> None:
    """jaxtyping passes over an annotation that it cannot read: two like `Float[Array, ...]` were never checked."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.value, ast.Name)
                and node.value.id in SHAPES
            ):
                match node.slice:
                    case ast.Tuple(elts=[_, ast.Constant(value=str())]):
                        pass
                    case _:
                        raise AssertionError(f"{path}, line {node.lineno}: {ast.unparse(node)}")


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _last_name(decorator: ast.expr) -> str:
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator).rpartition(".")[2]


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
