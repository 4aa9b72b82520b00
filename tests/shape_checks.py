"""Checks annotations at every call during the tests: all of them in some modules, those of arrays in the others."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar, get_args, get_type_hints

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "latentite"

STRICT = tuple(
    f"latentite.{name}"
    for name in ("lattice", "crystal", "symmetry", "nn", "objectives", "rl.objective", "generators.elements")
)
"""Here every annotation is checked; elsewhere arrays alone, because tests pass stand-ins for the other types."""

DECORATOR = "_checked_at_its_calls"
"""Name of the decorator in the modules that are checked."""

Function = TypeVar("Function", bound=Callable[..., Any])


def modules_with_shapes() -> list[str]:
    """Every module of ours that has an annotation of an array's shape, by dotted name."""
    paths = (
        path for path in sorted(PACKAGE.rglob("*.py")) if "jaxtyping" in path.read_text(encoding="utf-8")
    )
    parts = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths)
    return [".".join(names).removesuffix(".__init__") for names in parts]


def is_strict(module: str) -> bool:
    """True for a module in which every annotation is checked."""
    return any(module == name or module.startswith(name + ".") for name in STRICT)


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


def checked(function: Callable[..., Any], *, strict: bool) -> Callable[..., Any]:
    """The function with its annotations checked, or itself where none is of the kind that is checked."""
    if strict:
        return jaxtyped(function, typechecker=beartype)
    try:
        shaped = any(has_shape(hint) for hint in get_type_hints(function).values())
    except NameError:  # a name that only type checkers import: jaxtyping passes over such an annotation alone
        shaped = True
    return jaxtyped(function, typechecker=check_shapes) if shaped else function


def checked_at_its_calls(item: Any, *, strict: bool) -> Any:
    """A function, or a data class's initializer, that is prepared for its checks when it is first called.

    Preparing takes about two milliseconds, and most functions are never called in one process.
    """
    if isinstance(item, type):
        if is_dataclass(item) and "__init__" in vars(item):
            item.__init__ = checked_at_its_calls(item.__init__, strict=strict)  # type: ignore[misc]
        return item
    prepared: Callable[..., Any] | None = None

    @functools.wraps(item)
    def call(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        nonlocal prepared
        if prepared is None:
            prepared = checked(item, strict=strict)
        return prepared(*args, **options)

    return call


def decorate(body: Sequence[ast.stmt]) -> None:
    """Gives every function the decorator next to its own code, and every decorated class as the outermost one."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            decorator = ast.copy_location(ast.Name(DECORATOR, ast.Load()), statement)
            if not isinstance(statement, ast.ClassDef):
                statement.decorator_list.append(decorator)
            elif statement.decorator_list:
                statement.decorator_list.insert(0, decorator)
        for field in ("body", "orelse", "finalbody"):
            decorate(getattr(statement, field, ()))


class CheckedLoader(SourceFileLoader):
    """Loads a module with the decorator at its functions; its byte code is not stored."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the decorated module."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        decorate(tree.body)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module with the decorator among its names."""
        decorator = functools.partial(checked_at_its_calls, strict=is_strict(module.__name__))
        setattr(module, DECORATOR, decorator)
        super().exec_module(module)


class CheckedFinder(MetaPathFinder):
    """Finds the modules that are checked."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = frozenset(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's specification with another loader, None for modules that are not checked."""
        if fullname not in self.modules and not is_strict(fullname):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = CheckedLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Has modules that are imported from now on checked: call it before the first import of ours."""
    sys.meta_path.insert(0, CheckedFinder(modules_with_shapes()))
