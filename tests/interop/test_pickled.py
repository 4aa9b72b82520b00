"""The restricted reader: foreign classes become records, tensors stay numbers, and nothing in a file ever runs."""

from __future__ import annotations

import collections
import functools
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from chemeleon2_files import VAE_NAME, write_vae
from latentite import hub
from latentite.checkpoint import CheckpointError
from latentite.interop.chemeleon2 import import_checkpoint, is_chemeleon2
from latentite.interop.pickled import (
    DamagedPickleError,
    InertRecord,
    StoredTensor,
    UnsafePickleError,
    names_in,
    plain_value,
    read_pickled,
)


class Calls:
    """Asks, when unpickled, to call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


class Belongings:
    """A class that the reader does not know, with a state and tensors."""

    def __init__(self) -> None:
        self.width = 4
        self.weight = torch.arange(6.0).reshape(2, 3)


def with_pickle(source: Path, target: Path, program: bytes) -> Path:
    """A copy of a torch file with another pickle in it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    return target


def attacks(marker: Path) -> dict[str, Any]:
    """Objects whose loading would create the marker, each by another way."""
    return {
        "os.mkdir": Calls(os.mkdir, str(marker)),
        "os.system": Calls(os.system, f"mkdir {marker}"),
        "subprocess": Calls(subprocess.check_call, ["mkdir", str(marker)]),
        "eval": Calls(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "exec": Calls(exec, f"import os; os.mkdir({str(marker)!r})"),
        "open": Calls(open, str(marker), "w"),
        "getattr": Calls(getattr, "x", "__class__"),
        "partial": Calls(functools.partial(os.mkdir, str(marker))),
        "reduce": Calls(functools.reduce, os.mkdir, [str(marker)]),
        "defaultdict": collections.defaultdict(functools.partial(os.mkdir, str(marker))),
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks"])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(
    tmp_path: Path, cache: Path, name: str, place: str
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    content = {"state_dict": {}, "hyper_parameters": {}, "callbacks": {}}
    content[place] = {"x": attacks(marker)[name]}
    torch.save(content, path)
    with pytest.raises(
        UnsafePickleError, match=r"evil\.ckpt asks to run code when it is loaded \(\w+\.\w+\)"
    ):
        read_pickled(path)
    with pytest.raises(CheckpointError, match="asks to run code"):
        import_checkpoint(path)
    assert not marker.exists()


def test_the_traps_of_these_tests_are_real(tmp_path: Path) -> None:
    for name in ("os.mkdir", "os.system", "subprocess", "eval", "exec", "open"):
        marker, path = tmp_path / name, tmp_path / "evil.ckpt"
        torch.save(attacks(marker)[name], path)
        torch.load(path, weights_only=False)
        assert marker.exists(), name


def test_code_planted_in_a_real_chemeleon2_file_is_refused_by_the_hub(tmp_path: Path, cache: Path) -> None:
    """The file is one that imports; one instruction more, and it is refused, whoever reads it."""
    good, marker = write_vae(tmp_path), tmp_path / "executed"
    with zipfile.ZipFile(good) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        program = archive.read(name)
    planted = b"cos\nmkdir\nX" + len(str(marker)).to_bytes(4, "little") + str(marker).encode() + b"\x85R0"
    evil = with_pickle(good, tmp_path / "evil.ckpt", program[:2] + planted + program[2:])
    assert is_chemeleon2(evil)
    with pytest.raises(CheckpointError, match=r"asks to run code when it is loaded \(os\.mkdir\)"):
        hub.resolve(evil)
    assert not marker.exists()
    assert not (cache / "converted").exists() or not list((cache / "converted").iterdir())
    assert hub.resolve(good).suffix == ".ckpt"


def test_functions_of_other_packages_are_records_and_are_not_called(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "file.ckpt"
    torch.save({"x": Calls(torch.save, {"a": 1}, str(marker))}, path)
    found = read_pickled(path).content["x"]
    assert isinstance(found, InertRecord)
    assert found.kind == "torch.serialization.save"
    assert not marker.exists()


def test_a_foreign_object_says_its_class_and_state_and_its_tensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"a": Belongings(), "b": [torch.ones(2, 3).T, torch.zeros(0, 3)]}, path)
    file = read_pickled(path)
    record = file.content["a"]
    assert record.kind.endswith(".Belongings")
    assert record.attributes["width"] == 4
    stored = record.attributes["weight"]
    assert isinstance(stored, StoredTensor)
    assert file.tensor(stored).equal(torch.arange(6.0).reshape(2, 3))
    transposed, empty = (file.tensor(tensor) for tensor in file.content["b"])
    assert transposed.equal(torch.ones(3, 2))
    assert empty.shape == (0, 3)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_every_type_of_number_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    path, values = tmp_path / "file.ckpt", torch.tensor([[0, 1], [1, 1]]).to(dtype)
    torch.save({"x": values}, path)
    file = read_pickled(path)
    assert file.tensor(file.content["x"]).equal(values)


def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    """Sizes and strides are written by whoever made the file: read unchecked, they would show other memory."""
    path = tmp_path / "file.ckpt"
    torch.save({"x": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        program = archive.read(name)
    size = b"M" + (1000).to_bytes(2, "little")
    assert program.count(size) == 2  # of the storage, and of the tensor
    first = program.index(size)
    larger = program[: first + 3] + program[first + 3 :].replace(size, b"M" + (1001).to_bytes(2, "little"))
    with pytest.raises(DamagedPickleError, match="reaches beyond its storage"):
        read_pickled(with_pickle(path, tmp_path / "larger.ckpt", larger))
    both = program.replace(size, b"M" + (1001).to_bytes(2, "little"))
    file = read_pickled(with_pickle(path, tmp_path / "both.ckpt", both))
    with pytest.raises(DamagedPickleError, match="storage 0 has not the size"):
        file.tensor(file.content["x"])


@pytest.mark.parametrize(
    "program", [b"", b"\x80\x02", b"garbage", b"\x80\x02]q\x00h\x07.", b"\x80\x02X\xff\xff\xff\x7f"]
)
def test_a_broken_pickle_is_a_clear_error(tmp_path: Path, program: bytes) -> None:
    torch.save({}, tmp_path / "good.ckpt")
    broken = with_pickle(tmp_path / "good.ckpt", tmp_path / "broken.ckpt", program)
    with pytest.raises(DamagedPickleError, match=r"broken\.ckpt is damaged: its pickle cannot be read"):
        read_pickled(broken)


def test_what_is_no_torch_file_is_a_clear_error(tmp_path: Path) -> None:
    for name, content in {"text": b"hello", "pickle": pickle.dumps({}), "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DamagedPickleError, match="is not a torch zip file"):
            read_pickled(tmp_path / name)
        assert not is_chemeleon2(tmp_path / name)
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "other.zip").write_bytes(other.getvalue())
    with pytest.raises(DamagedPickleError, match=r"must have one data\.pkl, got 0"):
        read_pickled(tmp_path / "other.zip")


def test_a_truncated_file_is_a_clear_error(tmp_path: Path) -> None:
    path = write_vae(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=f"{VAE_NAME} is not a torch zip file, or is damaged"):
        import_checkpoint(path)


def test_damaged_numbers_are_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"x": torch.full((1000,), 7.0)}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((10,), 7.0).numpy().tobytes())
    content[place + 8] ^= 1
    path.write_bytes(content)
    file = read_pickled(path)
    with pytest.raises(DamagedPickleError, match="storage 0 cannot be read"):
        file.tensor(file.content["x"])


def test_compressed_numbers_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    """A megabyte of a compressed file can become a gigabyte of memory; torch stores numbers as they are."""
    path = tmp_path / "file.ckpt"
    torch.save({"x": torch.zeros(1000)}, path)
    bomb = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    file = read_pickled(bomb)
    with pytest.raises(DamagedPickleError, match="storage 0 has not the size"):
        file.tensor(file.content["x"])


def test_a_value_that_contains_itself_becomes_plain_all_the_same() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "..." in str(plain_value({"x": loop}))


def test_a_partial_that_holds_itself_becomes_plain_all_the_same() -> None:
    """Its function was followed without counting the depth: a RecursionError from a file that is only data."""
    kind = type("Record", (InertRecord,), {"kind": "functools.partial", "__slots__": ()})
    loop = kind()
    loop.state = (loop, (), {"lr": 0.1, "again": loop}, None)
    found = plain_value({"optimizer": loop})
    assert found["optimizer"]["lr"] == 0.1
    assert "..." in str(found)[-5000:]
    odd = kind()
    odd.state = (kind, (), [1, 2], None)
    assert plain_value(odd) == {"class": "functools.partial"}


def test_a_short_pickle_of_very_many_values_is_cut() -> None:
    """Forty lists of ten times the one before: ten to the fortieth values."""
    value: Any = [0]
    for _ in range(39):
        value = [value] * 10
    assert "..." in str(plain_value(value))


def test_names_are_found_by_a_look_at_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    torch.save({"x": Calls(os.mkdir, "y")}, path)
    assert any(name.endswith(".mkdir") for name in names_in(path))
    torch.save({"x": "src.vae_module.encoders.transformer"}, path)  # a text is no class
    assert not is_chemeleon2(path)
