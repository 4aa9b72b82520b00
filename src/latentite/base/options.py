"""Command-line options made of the fields of dataclasses: name, type, default, choices and help stand there once.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Demo:
        out: Path = field(default=Path("demo"), metadata=option("DIR"))
        \"\"\"Folder for everything that it leaves.\"\"\"
        seed: int = 0
        \"\"\"Of everything random.\"\"\"

    add_options(parser, Demo)                          # --out DIR [demo], --seed N [0]
    demo = fill(Demo, parser.parse_args())             # what was not typed keeps the default of its field

The help is the first paragraph of the docstring under the field, followed by the default in brackets; a default of None
is explained by a docstring that ends in brackets of its own.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

Options = TypeVar("Options")

METAVARS = {int: "N", float: "X", str: "NAME", Path: "PATH"}
"""The value in the help of an option that names none of its own."""


def option(
    metavar: str | None = None,
    *,
    flag: str | None = None,
    group: str | None = None,
    kind: type | None = None,
    choices: Sequence[str] | None = None,
    positional: bool = False,
    repeatable: bool = False,
    none: Any = None,
    is_typed: bool = True,
) -> Mapping[str, Any]:
    """Metadata of a field, for what its annotation and default do not say.

    Args:
        metavar: the value in the help; None for that of its type.
        flag: the option, if it is not the name of the field; of a true field what makes it false.
        group: heading in the help.
        kind: the type of what is typed, where the field takes more than that.
        choices: the values that are allowed; those of an enum or `Literal` need not be given.
        positional: no option but an argument, by its place.
        repeatable: may be typed several times, and is a list.
        none: what is typed for None.
        is_typed: False for what only Python and the program itself set.
    """
    given = {key: value for key, value in locals().items() if value is not None and value is not False}
    return types.MappingProxyType({**given, "is_typed": is_typed})


def add_options(
    parser: argparse.ArgumentParser,
    *kinds: type,
    only: Collection[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
    required: Collection[str] = (),
) -> None:
    """Add an option for each field of dataclasses, in their order; one that several have is that of the first.

    Args:
        parser: of the command.
        kinds: dataclasses.
        only: the fields that the command offers; None for all.
        defaults: of fields that have another default in this command.
        required: fields that this command wants to be told, whatever their default.
    """
    groups: dict[str | None, argparse._ActionsContainer] = {
        None: parser,
        **{group.title: group for group in parser._action_groups},
    }
    added: set[str] = set()
    for kind in kinds:
        for item in fields(kind):
            if not item.metadata.get("is_typed", True) or (only is not None and item.name not in only):
                continue
            title = item.metadata.get("group")
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            default = (defaults or {}).get(item.name, _default(item))
            default = MISSING if item.name in required else default
            names, settings = _argument(kind, item, default)
            if names[0] in added:
                continue
            added.add(names[0])
            if item.name in (defaults or {}):
                settings["default"] = default
            groups[title].add_argument(*names, **settings)


def make_command(
    parser: argparse.ArgumentParser,
    run: Callable[..., int],
    *kinds: type,
    description: str | None = None,
    epilog: str | None = None,
) -> None:
    """Make a parser a command, whose arguments have `func`: from themselves to the exit code.

    Args:
        parser: of the command.
        run: called with the filled dataclasses.
        kinds: dataclasses of its options.
        description: at the head of its help, in place of one that the parser has.
        epilog: at the end of it. Where there is one, lines of both stay as they are.
    """
    parser.description, parser.epilog = description or parser.description, epilog
    if epilog is not None:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, *kinds)
    parser.set_defaults(func=lambda arguments: run(*(fill(kind, arguments) for kind in kinds)))


def fill(kind: type[Options], arguments: argparse.Namespace, **given: Any) -> Options:
    """The dataclass with what was typed, and what is given besides.

    Raises:
        ValueError: what the dataclass refuses.
    """
    return kind(**typed(kind, arguments), **given)


def typed(kind: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """The typed options of a dataclass, by field: enums as such, several values as a tuple."""
    given = {}
    for item in fields(kind):
        key = _destination(kind, item)
        if key not in arguments:
            continue
        value = getattr(arguments, key)
        hint = _choose(kind, item)
        if value is not None and value == item.metadata.get("none", ...):
            value = None
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            value = hint(value)
        given[item.name] = value
    return given


def typed_flags(kind: type, arguments: argparse.Namespace) -> list[str]:
    """The options of a dataclass that were typed, as they were typed."""
    return [_flag(item) for item in fields(kind) if _destination(kind, item) in arguments]


def _flag(item: Field[Any]) -> str:
    return item.metadata.get("flag") or f"--{item.name.replace('_', '-')}"


def _argument(kind: type, item: Field[Any], default: Any) -> tuple[list[str], dict[str, Any]]:
    """Keyword arguments of `add_argument` for a field."""
    metadata, hint = item.metadata, _choose(kind, item)
    settings: dict[str, Any] = {"help": _help(kind, item, default), "default": argparse.SUPPRESS}
    choices = metadata.get("choices") or _choices(hint)
    if hint is bool:
        settings |= {"action": "store_const", "const": not default}
    elif choices:
        settings["choices"] = choices
    else:
        settings |= {"type": hint, "metavar": metadata.get("metavar") or METAVARS[hint]}
    is_sequence = bool(metadata.get("repeatable")) or _is_sequence(kind, item)
    if metadata.get("positional"):
        if is_sequence:
            settings["nargs"] = "+" if default is MISSING else "*"
        return [_destination(kind, item)], settings
    if is_sequence:
        settings["action"] = "append"
    settings |= {"dest": _destination(kind, item), "required": default is MISSING}
    return [_flag(item)], settings


def _destination(kind: type, item: Field[Any]) -> str:
    return f"{kind.__name__}.{item.name}"  # fields of several dataclasses may share a name


def _default(item: Field[Any]) -> Any:
    return item.default if item.default_factory is MISSING else item.default_factory()


def _help(kind: type, item: Field[Any], default: Any) -> str:
    text = _docstrings(kind).get(item.name, "")
    text = " ".join(text.split("\n\n")[0].split())
    text = text if text.endswith("...") else text.removesuffix(".")
    first = re.match(r"\w+", text)
    if first and (first[0] == "A" or first[0][1:].islower()):
        text = text[0].lower() + text[1:]
    default = item.metadata.get("none") if default is None else default
    is_telling = default is not MISSING and default is not None and not isinstance(default, bool)
    if is_telling and default != () and default != {} and not text.endswith("]"):
        text = f"{text} [{_show(default)}]"
    return text.replace("%", "%%")


def _show(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, Enum):
        return str(default.value)
    return ",".join(map(_show, default)) if isinstance(default, (tuple, list)) else str(default)


def _choose(kind: type, item: Field[Any]) -> Any:
    """The type of one value that is typed: of a union the widest, text before paths before numbers."""
    if "kind" in item.metadata:
        return item.metadata["kind"]
    options = [entry for option in _options(_hint(kind, item)) for entry in _options(_element(option))]
    for candidate in (str, Path, float, int):
        if candidate in options:
            return candidate
    return options[0]


def _is_sequence(kind: type, item: Field[Any]) -> bool:
    return "kind" not in item.metadata and all(map(_is_list, _options(_hint(kind, item))))


def _is_list(hint: Any) -> bool:
    return typing.get_origin(hint) in (tuple, list, Sequence)


def _element(hint: Any) -> Any:
    return typing.get_args(hint)[0] if _is_list(hint) else hint


def _options(hint: Any) -> list[Any]:
    """The members of a union without None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [one for one in (typing.get_args(hint) if is_union else (hint,)) if one is not type(None)]


def _hint(kind: type, item: Field[Any]) -> Any:
    """The annotation of one field; those of others may name what only type checkers import."""
    owner = next(one for one in kind.__mro__ if item.name in inspect.get_annotations(one))
    alone = types.SimpleNamespace(__annotations__={item.name: owner.__annotations__[item.name]})
    return typing.get_type_hints(alone, vars(sys.modules[owner.__module__]))[item.name]


def _choices(hint: Any) -> list[str] | None:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [member.value for member in hint]
    return None


@lru_cache(maxsize=256)
def _docstrings(kind: type) -> Mapping[str, str]:
    """The text under each field of a dataclass, in its source."""
    docstrings: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        [body] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docstrings[before.target.id] = str(after.value.value)
    return docstrings
