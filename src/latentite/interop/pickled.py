"""Reads a foreign pickle into inert records: a torch checkpoint of classes that are not ours, none of them called.

Such a file is a zip of one pickle and the numbers of its tensors. A pickle is a small program that names classes and
calls them; here every name that is not a plain container becomes an `InertRecord`, which only remembers its arguments,
and a tensor a `StoredTensor`, whose numbers are read when they are asked for. A name that no checkpoint needs and
that could do something (all of the standard library but a few classes) is refused before anything is made of it.
"""

from __future__ import annotations

import collections
import io
import itertools
import math
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

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


class InertRecord:
    """The state of a pickled object of a foreign class; its class has the name in `kind`."""

    kind: ClassVar[str] = ""
    __slots__ = ("args", "entries", "keywords", "state")

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    state: Any
    entries: list[Any]

    def __new__(cls, *args: Any, **keywords: Any) -> InertRecord:
        record = super().__new__(cls)  # a pickle makes most objects without __init__
        record.args, record.keywords, record.state, record.entries = args, keywords, None, []
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries.append((key, value))

    def append(self, value: Any) -> None:
        """Keeps the items of a list's subclass."""
        self.entries.append(value)

    def __repr__(self) -> str:
        return f"<{self.kind}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's attributes, where it has said them by name."""
        return self.state if isinstance(self.state, dict) else {}

    def submodule(self, path: str) -> InertRecord | None:
        """The module at `a.b.0` inside a `torch.nn.Module`; None where there is none."""
        module: Any = self
        for name in path.split("."):
            modules = module.attributes.get("_modules") if isinstance(module, InertRecord) else None
            module = modules.get(name) if isinstance(modules, dict) else None
        return module if isinstance(module, InertRecord) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Place of a tensor's numbers in the file."""

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
    if isinstance(value, InertRecord):
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
    if isinstance(value, type) and issubclass(value, InertRecord):
        return value.kind
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


MAX_PICKLE_BYTES = 1 << 28
"""Of the pickle itself, without tensors; those of public checkpoints have some 100 kB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledFile:
    """The content of a file; `tensor` reads the numbers."""

    path: Path
    content: Any
    folder: str
    """Of the file's entries inside the zip."""

    def tensor(self, stored: StoredTensor) -> Tensor:
        """The tensor itself, on the CPU, sharing memory with nothing.

        Raises:
            DamagedPickleError: when its numbers are not all there.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                entry = archive.getinfo(f"{self.folder}data/{stored.key}")
                # torch does not compress; what is compressed could be far larger than the file
                is_compressed = entry.compress_type != zipfile.ZIP_STORED
                if is_compressed or entry.file_size != stored.num_stored * stored.dtype.itemsize:
                    raise DamagedPickleError(
                        f"{self.path} is damaged: storage {stored.key} has not the size that it should have"
                    )
                numbers = bytearray(archive.read(entry))
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise DamagedPickleError(
                f"{self.path} is damaged: storage {stored.key} cannot be read"
            ) from error
        if stored.last < 0:
            return torch.empty(stored.shape, dtype=stored.dtype)
        flat = torch.frombuffer(numbers, dtype=stored.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()


def read_pickled(path: str | Path) -> PickledFile:
    """Read a file by `torch.save`; nothing in it is imported or called.

    Raises:
        UnsafePickleError: when it names something that could run code.
        DamagedPickleError: when it is no such file, or not whole.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name, program = _program(archive, path)
            folder = name.removesuffix("data.pkl")
            order = f"{folder}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise DamagedPickleError(f"{path} has numbers in big-endian order, which is not read here")
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DamagedPickleError(f"{path} is not a torch zip file, or is damaged") from error
    try:
        content = _Reader(io.BytesIO(program), path).load()
    except (UnsafePickleError, DamagedPickleError):
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise DamagedPickleError(
            f"{path} is damaged: its pickle cannot be read ({type(error).__name__})"
        ) from error
    return PickledFile(path=path, content=content, folder=folder)


def names_in(path: str | Path) -> Iterator[str]:
    """Dotted names of all classes and functions that a file's pickle names, by a look at its bytes alone."""
    import pickletools

    path = Path(path)
    if not zipfile.is_zipfile(path):
        return
    texts: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            _, program = _program(archive, path)
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            elif "UNICODE" in opcode.name:
                texts.append(str(argument))
    except (ValueError, zipfile.BadZipFile, OSError, EOFError):
        return


def _program(archive: zipfile.ZipFile, path: Path) -> tuple[str, bytes]:
    """Name and bytes of the pickle in a torch zip file."""
    names = [name for name in archive.namelist() if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(names) != 1:
        raise DamagedPickleError(
            f"{path} is not a torch zip file: it must have one data.pkl, got {len(names)}"
        )
    if archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
        raise DamagedPickleError(
            f"{path} is not a checkpoint: its data.pkl is larger than {MAX_PICKLE_BYTES} bytes"
        )
    return names[0], archive.read(names[0])


@dataclass(frozen=True, slots=True)
class _Storage:
    """A class such as `torch.FloatStorage`."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Stored:
    """A storage that a tensor refers to."""

    key: str
    dtype: torch.dtype
    num_stored: int


@dataclass(frozen=True, slots=True)
class _Call:
    """A function of ours in the place of one that the pickle calls. Frozen: a pickle may set attributes."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _Reader(pickle.Unpickler):
    """Makes containers, records and stored tensors only."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._kinds: dict[str, type[InertRecord]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name of the pickle: a plain container, our own function, or an `InertRecord` of that name.

        Nothing is imported. Unpickling calls this for every name, so whatever it does not give cannot be called.

        Raises:
            UnsafePickleError: for a name of the standard library that is not known to be harmless.
        """
        # Pickles of protocol 2, which torch writes, have the names that modules had in Python 2.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        if (module, name) in CONTAINERS:
            return CONTAINERS[module, name]
        if module.split(".")[0] in sys.stdlib_module_names and (module, name) not in INERT:
            raise UnsafePickleError(
                f"{self._path} asks to run code when it is loaded ({module}.{name}); it was refused, and nothing "
                "in it was executed. Do not load it with other programs"
            )
        if module in ("torch", "torch.storage") and name in DTYPES:
            return _Storage(DTYPES[name])
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Call(self._tensor)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _Call(lambda data, *_: data)
        kind = f"{module}.{name}"
        if kind not in self._kinds:
            self._kinds[kind] = type("InertRecord", (InertRecord,), {"kind": kind, "__slots__": ()})
        return self._kinds[kind]

    def persistent_load(self, pid: Any) -> _Stored:
        """The storage that a tensor refers to, by its key; its numbers are not read.

        Raises:
            DamagedPickleError: for a reference that torch does not write.
        """
        match pid:
            case ("storage", _Storage(dtype), str(key), str(), int(num_stored)) if num_stored >= 0:
                return _Stored(key, dtype, num_stored)
        raise DamagedPickleError(f"{self._path} is damaged: it refers to a storage of an unknown kind")

    def _tensor(self, *arguments: Any) -> StoredTensor:
        match arguments:
            case (_Stored(key, dtype, num_stored), int(offset), tuple(shape), tuple(stride), *_):
                numbers = (offset, *shape, *stride)
                if len(shape) == len(stride) and all(type(n) is int and n >= 0 for n in numbers):
                    tensor = StoredTensor(
                        key=key, dtype=dtype, num_stored=num_stored, offset=offset, shape=shape, stride=stride
                    )
                    if tensor.last < num_stored and math.prod(shape) <= max(num_stored, 1):
                        return tensor
        raise DamagedPickleError(f"{self._path} is damaged: a tensor reaches beyond its storage")
