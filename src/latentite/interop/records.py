"""What becomes of a foreign pickle: records of its objects, places of its tensors, and which names are harmless."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

MAX_DEPTH = 40
"""Of nested values that `plain_value` follows."""
MAX_VALUES = 100_000
"""Values that `plain_value` gives in all."""
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
CONTAINERS: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
}
"""Made as they are: they can do nothing."""
INERT = {
    *(("builtins", name) for name in ("object", "int", "float", "complex", "str", "bool", "bytes", "slice")),
    *(("collections", name) for name in ("defaultdict", "deque")),
    *(("datetime", name) for name in ("datetime", "timedelta")),
    *(
        (m, name)
        for m in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "WindowsPath")
    ),
    ("copyreg", "_reconstructor"),
    ("_codecs", "encode"),
    ("functools", "partial"),
    ("typing", "Any"),
}
"""Names of the standard library that checkpoints have; as all names of other packages they become records."""


class UnsafePickleError(ValueError):
    """The pickle names something that could run code."""


class DamagedPickleError(ValueError):
    """The file is no torch checkpoint, or not whole."""


class Record:
    """What a pickled object of a foreign class said of itself; its class has the name in `kind`."""

    kind: ClassVar[str] = ""
    __slots__ = ("args", "entries", "keywords", "state")

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    state: Any
    entries: list[Any]

    def __new__(cls, *args: Any, **keywords: Any) -> Record:
        record = super().__new__(cls)  # a pickle makes most objects without __init__
        record.args, record.keywords, record.state, record.entries = args, keywords, None, []
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """What a list's subclass is given."""
        self.entries.append(value)

    def __repr__(self) -> str:
        return f"<{self.kind}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's attributes, where it has said them by name."""
        return self.state if isinstance(self.state, dict) else {}

    def submodule(self, path: str) -> Record | None:
        """The module at `a.b.0` inside a `torch.nn.Module`; None where there is none."""
        module: Any = self
        for name in path.split("."):
            modules = module.attributes.get("_modules") if isinstance(module, Record) else None
            module = modules.get(name) if isinstance(modules, dict) else None
        return module if isinstance(module, Record) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor's numbers stand in the file."""

    key: str
    dtype: torch.dtype
    num_stored: int
    """Numbers of its storage, which other tensors may share."""
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def last(self) -> int:
        """Place in the storage of the tensor's last number; -1 where it has none."""
        if 0 in self.shape:
            return -1
        return self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )


def plain_value(value: Any) -> Any:
    """A pickled value as None, numbers, text, lists and dicts; of an object its class and its plain attributes.

    A pickle may hold itself, and a short one the same list a million times: what is too deep or too much is "...".
    """
    return _plain_value(value, 0, itertools.count())


def _plain_value(value: Any, depth: int, counter: Iterator[int]) -> Any:
    if depth > MAX_DEPTH or next(counter) > MAX_VALUES:
        return "..."
    if isinstance(value, Record):
        if value.kind.startswith("omegaconf."):
            key = "_content" if "_content" in value.attributes else "_val"
            return _plain_value(value.attributes.get(key), depth + 1, counter)
        if value.kind == "functools.partial" and isinstance(value.state, tuple) and len(value.state) == 4:
            function, _, keywords, _ = value.state
            known = keywords if isinstance(keywords, dict) else {}
            items = {str(name): _plain_value(item, depth + 1, counter) for name, item in known.items()}
            return {"class": _plain_value(function, depth + 1, counter), **items}
        shown = {
            str(name): item
            for name, item in value.attributes.items()
            if not str(name).startswith("_") and isinstance(item, bool | int | float | str)
        }
        return {"class": value.kind, **shown}
    if isinstance(value, dict):
        return {str(name): _plain_value(item, depth + 1, counter) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain_value(item, depth + 1, counter) for item in value]
    if isinstance(value, type) and issubclass(value, Record):
        return value.kind
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
