"""Which modules have their annotations checked at every call during the tests, and how strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "latentite"

STRICT = [
    f"latentite.{name}"
    for name in ("lattice", "crystal", "symmetry", "nn", "objectives", "rl.objective", "generators.elements")
]
"""Here every annotation is checked."""

ARRAYS_ONLY = ("data", "energy", "match", "metrics")
"""Rooms in which arrays alone are checked, because tests pass stand-ins for the other types."""

Function = TypeVar("Function", bound=Callable[..., Any])


def modules_with_shapes() -> list[str]:
    """Every module of `ARRAYS_ONLY` that has an annotation of an array's shape, by dotted name."""
    paths = (
        path
        for room in ARRAYS_ONLY
        for path in sorted((PACKAGE / room).rglob("*.py"))
        if "jaxtyping" in path.read_text(encoding="utf-8")
    )
    parts = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths)
    return [".".join(names).removesuffix(".__init__") for names in parts]


def has_shape(annotation: object) -> bool:
    """True for an annotation that is a jaxtyping array or is made of one."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(annotation))


def check_shapes(function: Function) -> Function:
    """Applies beartype to those arguments and results only that are arrays of a given shape.

    jaxtyping calls it with a function of its own that has the signature of the one to check.
    """
    shaped = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    function.__annotations__ = shaped
    return beartype(function) if shaped else function


def install() -> None:
    """Has modules that are imported from now on checked: call it before the first import of ours."""
    install_import_hook(modules_with_shapes(), "shape_checks.check_shapes")
    install_import_hook(STRICT, "beartype.beartype")  # the later hook is asked first
