"""Objects by name: `package.module.Class`, or `path/to/my_reward.py:MyReward` for a file anywhere.

What users name runs with their rights, as any script of theirs. Comes before `protocol.py`; `combine.py` builds
the rewards of a run here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "_target_"


def locate(target: str) -> Any:
    """What a name stands for.

    Raises:
        ValueError: in one sentence, when there is no such file, module or name, or it cannot be imported.
    """
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


def build(spec: Mapping[str, Any], where: str) -> Any:
    """The object of a section with `_target_` and keyword arguments, which may be such sections themselves.

    A class is called with its arguments. A function named without arguments is the object itself.

    Args:
        spec: the section.
        where: its dotted key, for messages.

    Raises:
        ValueError: naming the key, when the target or its arguments do not fit.
    """
    target = spec.get(TARGET)
    if not isinstance(target, str):
        raise ValueError(
            f"{where}.{TARGET} must say which reward it is (package.module.Name or file.py:Name), got {target!r}"
        )
    try:
        found = locate(target)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not callable(found):
        raise ValueError(f"{where}.{TARGET} must be a class or a function, got {found!r}")
    arguments = {
        key: build(value, f"{where}.{key}") if isinstance(value, Mapping) and TARGET in value else value
        for key, value in spec.items()
        if key != TARGET
    }
    if not isinstance(found, type) and not arguments:
        return found
    try:
        return found(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {target} does not take these arguments: {error}") from error


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
