"""A torch checkpoint of classes that are not ours, read without importing or calling any of them.

Such a file is a zip of one pickle and the numbers of its tensors. A pickle is a small program that names classes and
calls them; here every name that is not a plain container becomes a `Record`, which only remembers what it was given,
and a tensor a `StoredTensor`, whose numbers are read when they are asked for. A name that no checkpoint needs and
that could do something (all of the standard library but a few classes) is refused before anything is made of it.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentite.interop.records import (
    CONTAINERS,
    DTYPES,
    INERT,
    DamagedPickleError,
    Record,
    StoredTensor,
    UnsafePickleError,
)

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
        self._kinds: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle: a plain container, a function of ours, or a `Record` of its kind.

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
            self._kinds[kind] = type("Record", (Record,), {"kind": kind, "__slots__": ()})
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
