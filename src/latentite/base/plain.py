"""Plain values (dict, list, str, number, None) to typed config dataclasses and back.

`config.py` uses it for composed YAML and `checkpoint/` for the configs that checkpoints carry, so that both
refuse the same mistakes with the same sentences. Depends on nothing of ours; the first rung of the house.
"""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum, StrEnum
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

Config = TypeVar("Config")
Choice = TypeVar("Choice", bound=StrEnum)

Texts = str | Sequence[str]
"""Several names as a user types them: a sequence, or one text with commas."""
Numbers = int | str | Sequence[int]
"""Several whole numbers: one, a sequence, or a text with commas."""
Structures: TypeAlias = "str | Path | Structure | Atoms | Sequence[Structure | Atoms]"
"""Crystals as a user has them: a file, a folder, or objects."""


NOT_TYPED: Mapping[str, Any] = types.MappingProxyType({"is_typed": False})
"""Metadata of a field that the program sets itself: no message suggests it."""


class ConfigError(ValueError):
    """A setting that cannot be used, in one sentence that names its dotted key."""


def check_seed(seed: int) -> None:
    """Refuse a seed that not every generator takes.

    Raises:
        ValueError: for one below 0, or that is no whole number.
    """
    if not isinstance(seed, Integral):
        raise ValueError(f"seed must be a whole number, got {seed}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")


def check_counts(config: object, *names: str, or_null: bool = False) -> None:
    """Refuse fields that count something and are below 1.

    Args:
        config: what has the fields.
        names: the fields.
        or_null: they may be None.

    Raises:
        ValueError: naming the first such field.
    """
    for name in names:
        value = getattr(config, name)
        if not (or_null and value is None) and value < 1:
            raise ValueError(f"{name} must be at least 1{' or null' if or_null else ''}, got {value}")


def choice(option: str, value: str, kind: type[Choice]) -> Choice:
    """One of an enum's values.

    Raises:
        ValueError: for any other.
    """
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{option} must be one of {', '.join(kind)}, got {value}") from None


def names(value: Texts) -> list[str]:
    """`a,b` or a sequence as a list, without empty parts."""
    parts = value.split(",") if isinstance(value, str) else value
    return [text for part in parts if (text := part.strip())]


def numbers(option: str, value: Numbers) -> list[int]:
    """`1,2,4`, one number or a sequence as a list.

    Raises:
        ValueError: for what is no whole number.
    """
    parts: Sequence[int | str] = [value] if isinstance(value, int) else value
    parts = names(value) if isinstance(value, str) else parts
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise ValueError(f"{option} must be whole numbers such as 1,2,4, got {value}") from None


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Errors about what a setting names begin with the setting's dotted key.

    Raises:
        ValueError, FileNotFoundError: as raised inside, in more words.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{key}: {error}") from error


def from_plain(kind: type[Config], values: Mapping[str, Any], *, where: str = "") -> Config:
    """Build a config dataclass, checking every key and type on the way down.

    Args:
        kind: the dataclass.
        values: its fields by name; what is left out takes the default.
        where: dotted key of this section, for messages.

    Raises:
        ConfigError: for an unknown key, a wrong type, a missing value, or a value that the dataclass refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'the config'} must be a section of keys, got {_show(values)}")
    known = {item.name: item for item in fields(kind) if item.init}  # type: ignore[arg-type]  # a dataclass
    for key in values:
        if key not in known:
            typed = [name for name, item in known.items() if item.metadata.get("is_typed", True)]
            raise ConfigError(_unknown(str(key), where, typed))
    missing = [name for name, item in known.items() if name not in values and _is_required(item)]
    if missing:
        raise ConfigError(f"{_join(where, missing[0])} must be given, but it is missing")
    hints = _hints(kind)  # type: ignore[arg-type]  # classes are hashable
    arguments = {key: convert(hints[key], value, where=_join(where, key)) for key, value in values.items()}
    try:
        return kind(**arguments)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(_place(str(error), where, list(known))) from error


def convert(hint: Any, value: Any, *, where: str) -> Any:
    """One value as the type that a field declares.

    Raises:
        ConfigError: if it is of another type.
    """
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value, where=where)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return _one_of(typing.get_args(hint), value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if origin in (list, tuple):
        return _convert_sequence(origin, typing.get_args(hint), value, where)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a section of keys, got {_show(value)}")
        item = typing.get_args(hint)[1]
        return {str(key): convert(item, entry, where=_join(where, str(key))) for key, entry in value.items()}
    return _convert_scalar(hint, value, where)


def declared(kind: Any, key: str) -> Any:
    """The type that a dotted key has below a config dataclass; None where there is no such key."""
    for part in key.split("."):
        if kind is Any:
            return Any
        section = next((o for o in _options(kind) if is_dataclass(o) or typing.get_origin(o) is dict), None)
        if section is None:
            return None
        kind = _hints(section).get(part) if is_dataclass(section) else typing.get_args(section)[1]  # type: ignore[arg-type]  # a class
    return kind


def default_values(kind: Any) -> dict[str, Any]:
    """Every setting of a config dataclass at its default, as plain values, section in section.

    A section is read off its class, because not every class can be made of defaults alone. Left out is what the
    program sets itself (`NOT_TYPED`), and what has no default and is no section.
    """
    values: dict[str, Any] = {}
    for item in fields(kind):
        section = _hints(kind)[item.name] if _is_required(item) else item.default_factory
        if not item.metadata.get("is_typed", True):
            continue
        if isinstance(section, type) and is_dataclass(section):
            values[item.name] = default_values(section)
        elif item.default is not MISSING:
            values[item.name] = to_plain(item.default)
        elif item.default_factory is not MISSING:
            values[item.name] = to_plain(item.default_factory())
    return values


def is_text(kind: Any) -> bool:
    """True if values of a declared type are a text or a path, and nothing else but null."""
    options = set(_options(kind)) - {type(None)}
    return bool(options) and options <= {str, Path}


def _options(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def to_plain(value: Any) -> Any:
    """A config as plain values: dataclasses as dicts, enums by value, paths as text, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    return value


@lru_cache(maxsize=256)
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    options = [kind for kind in kinds if kind is not type(None)]
    failures = []
    for kind in options:
        try:
            return convert(kind, value, where=where)
        except ConfigError as error:
            failures.append(error)
    if len(options) == 1:
        raise failures[0]
    expected = " or ".join(_name(kind) for kind in kinds)
    raise ConfigError(f"{where} must be {expected}, got {_show(value)}")


def _convert_sequence(origin: type, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} must be a list, got {_show(value)}")
    if origin is list or kinds[1:] == (Ellipsis,):
        kinds = (kinds[0],) * len(value)
    elif len(kinds) != len(value):
        raise ConfigError(f"{where} must be a list of {len(kinds)} values, got {_show(value)}")
    return origin(
        convert(kind, entry, where=f"{where}[{position}]")
        for position, (kind, entry) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_scalar(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_one_of(tuple(member.value for member in hint), to_plain(value), where))
    if hint is Path and isinstance(value, (str, Path)):
        return Path(os.path.expanduser(value))  # shells leave a `~` after a `=` as it is
    # bool is an int in Python; here `batch_size=true` is a mistake.
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        return _float_from_text(value, where)
    is_stray_bool = isinstance(value, bool) and hint is not bool
    if isinstance(value, hint) and not is_stray_bool:
        return value
    raise ConfigError(f"{where} must be {_name(hint)}, got {_show(value)}")


def _one_of(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise ConfigError(f"{where} must be one of {', '.join(map(str, choices))}, got {_show(value)}")


def _float_from_text(value: str, where: str) -> float:
    # YAML 1.1 reads 1e-4 (no dot) as text.
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{where} must be a number, got {_show(value)}") from None


def _name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        type(None): "null",
    }
    if kind in names:
        return names[kind]
    if typing.get_origin(kind) in (list, tuple):
        return "a list"
    return "a section of keys"


def _show(value: Any) -> str:
    text = repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if value is None else f"{short} ({type(value).__name__})"


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _unknown(key: str, where: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {_join(where, near[0])}?" if near else f"known keys are {', '.join(known)}"
    return f"{_join(where, key)} is not a setting; {advice}"


def _place(message: str, where: str, known: list[str]) -> str:
    """Name the setting as the user typed it: a message that starts with a field's name gets its section."""
    first = message.split(maxsplit=1)[0].split(".")[0].split("[")[0] if message else ""
    if where and first in known:
        return f"{where}.{message}"
    if where and message.startswith(f"{where.split('.')[-1]}."):
        return where + message[len(first) :]
    return f"{where}: {message}" if where else message
