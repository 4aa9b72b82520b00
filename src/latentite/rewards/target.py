"""Objects by name: `package.module.Class`, or `path/to/my_reward.py:MyReward` for a file anywhere.

What users name runs with their rights, as any script of theirs.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "_target_"


def locate(target: str) -> Any:
    """The object that a name stands for.

    Raises:
        ValueError: in one sentence, when there is no such file, module or name, or it cannot be imported.
    """
    if target.endswith(".py"):
        raise ValueError(
            f"{TARGET} {target} must say which class or function of the file it is: {target}:Name"
        )
    if ".py:" in target:
        path, _, name = target.rpartition(":")
        module = _module_of_file(Path(path).expanduser(), target)
    else:
        place, _, name = target.replace(":", ".").rpartition(".")
        if not place:
            raise ValueError(f"{TARGET} must be package.module.Name or path/to/file.py:Name, got {target!r}")
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ValueError(f"{TARGET} {target} cannot be imported: {error}") from error
    if not hasattr(module, name):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ValueError(
            f"{TARGET} {target}: there is no {name} in it; there are {', '.join(names) or 'none'}"
        )
    return getattr(module, name)


def build(spec: Mapping[str, Any], where: str, *, beside: Collection[str] = ()) -> Any:
    """The object of a section with `_target_` and keyword arguments, which may be such sections themselves.

    A class is called with its arguments. A function named without arguments is the object itself.

    Args:
        spec: the section.
        where: its dotted key, for messages.
        beside: what else may stand in such a section, for messages; the caller has taken it out.

    Raises:
        ValueError: naming the key, when the target or its arguments do not fit.
    """
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise ValueError(
            f"{where}.{TARGET} must say which reward it is (package.module.Name or file.py:Name), got {target!r}"
        )
    try:
        named = locate(target)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not callable(named):
        raise ValueError(f"{where}.{TARGET} must be a class or a function, got {named!r}")
    arguments = {
        key: build(value, f"{where}.{key}") if isinstance(value, Mapping) and TARGET in value else value
        for key, value in spec.items()
        if key != TARGET
    }
    if not isinstance(named, type) and not arguments:
        return named
    try:
        _check_names(named, arguments, beside)
        return named(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {target} does not take these arguments: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_names(target: Callable[..., Any], arguments: Mapping[str, Any], beside: Collection[str]) -> None:
    """Refuse a keyword that the signature does not have, or that one with `**` is misspelt from what is `beside`.

    Raises:
        TypeError: naming it, and what is near it.
    """
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # of a builtin
        return
    named = [name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD]
    takes_any = len(named) < len(parameters)
    for key in arguments:
        near = difflib.get_close_matches(key, [*named, *beside], n=1, cutoff=0.8 if takes_any else 0.6)
        if key not in named and (near or not takes_any):
            advice = (
                f"did you mean {near[0]}?" if near else f"there are {', '.join([*named, *beside]) or 'none'}"
            )
            raise TypeError(f"{key} is not one of them; {advice}")


def _module_of_file(path: Path, target: str) -> ModuleType:
    """A file as a module; the same file gives the same module."""
    if not path.is_file():
        raise ValueError(f"{TARGET} {target}: there is no file {path} (seen from {Path.cwd()})")
    resolved = path.resolve()
    name = f"latentite_user_{hashlib.sha256(str(resolved).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
