"""A `.ckpt` as a record, read without executing anything in it, when it is a whole zip file as torch writes it."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from latentite.base.files import sha256_file
from latentite.checkpoint.record import (
    NETWORK_PREFIX,
    PAYLOAD_KEY,
    CheckpointError,
    CheckpointRecord,
    Weights,
    check_payload,
    weights_of,
)


def check_archive(path: Path) -> None:
    """Refuses, with one sentence, what is no whole file by `torch.save`; reads it once, at some GB/s.

    Raises:
        CheckpointError: for another kind of file, a truncated or damaged one, or a zip that torch would not write.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic[:1] == b"\x80":  # the first opcode of every binary pickle
        raise CheckpointError(
            f"{path} is a bare Python pickle, which can run code when it is read, so it was not opened; "
            "our checkpoints are zip files of tensors and plain values"
        )
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a checkpoint (neither a torch zip file nor a portable pair)")
    if not zipfile.is_zipfile(path):  # the table of contents stands at the end
        raise CheckpointError(f"{path} is truncated: its end is missing; copy or download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist())
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        # what zipfile raises for a table of contents that is wrong, or for entries that are encrypted
        raise CheckpointError(f"{path} is damaged and cannot be read; copy or download it again") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged} inside it is wrong; copy or download it again"
        )


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Torch writes one folder of uncompressed entries, so an archive that unpacks to more than it is, is none."""
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a zip file, but not a checkpoint (it has no data.pkl)")
    for entry in entries:
        place = PurePosixPath(entry.filename)
        if place.is_absolute() or ".." in place.parts:
            raise CheckpointError(
                f"{path} has an entry {entry.filename!r} that reaches out of it; torch writes no such file"
            )
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{path} has a compressed entry {entry.filename!r}; torch writes no such file, save it again"
            )
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is damaged: its entries are larger than itself; copy it again")


TRAINING_STATE = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", PAYLOAD_KEY)
"""Keys of a file that training can go on from."""

_CHEMELEON2 = re.compile(r"src\.(vae|ldm|rl|predictor)_module\.")


def record_from_lightning(path: Path, weights: Weights | None) -> CheckpointRecord:
    """The record of a file by Lightning; `read_checkpoint` says which weights are taken and what is raised."""
    content = _load_plain_zip(path)
    if not isinstance(content, dict) or not isinstance(content.get(PAYLOAD_KEY), dict):
        kind = "a checkpoint" if isinstance(content, dict) and "state_dict" in content else "a torch file"
        raise CheckpointError(
            f"{path} is {kind}, but not one that Latentite wrote (it has no key 'latentite')"
        )
    payload = content[PAYLOAD_KEY]
    stage, data = check_payload(payload, path)
    raw = {
        name.removeprefix(NETWORK_PREFIX): tensor
        for name, tensor in _tensors(content.get("state_dict"), "state_dict", path).items()
        if name.startswith(NETWORK_PREFIX)
    }
    if not raw:
        raise CheckpointError(
            f"{path} has no weights: nothing in its state_dict starts with '{NETWORK_PREFIX}'"
        )
    ema = _tensors(payload.get("ema"), "EMA", path)
    if weights is None:
        weights = weights_of(payload.get("default_weights") or (Weights.EMA if ema else Weights.RAW), path)
    if weights is Weights.EMA:
        if not ema:
            raise CheckpointError(f"{path} has no EMA weights (trained without EMA); ask for weights=raw")
        if unknown := sorted(ema.keys() - raw.keys()):
            raise CheckpointError(f"{path}: its EMA has {unknown[0]}, which its network has not")
        raw = {**raw, **ema}  # buffers are not averaged: they come from the raw state
    return CheckpointRecord(
        path=path,
        stage=stage,
        weights=weights,
        config=payload["config"],
        # The file is memory-mapped: a copy of what is used lets go of the optimizer's share.
        state={name: tensor.detach().clone() for name, tensor in raw.items()},
        data=data,
        metrics=payload["metrics"],
        sha256=sha256_file(path),
        generator=payload.get("generator"),
    )


def _tensors(section: Any, name: str, path: Path) -> dict[str, Tensor]:
    """A part of the file that must hold tensors by name; nothing stands for none."""
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: its {name} must hold tensors by name, got {type(section).__name__}")
    for key, tensor in section.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: its {name} must hold tensors by name, but {key!r} is none")
        is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_complex()
        # A tensor may repeat few stored numbers very often, which a copy would spell out.
        if not is_plain or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {key} of its {name} must be a plain tensor of real numbers that are all in the file"
            )
    return section


def read_training_state(path: Path) -> dict[str, Any]:
    """The whole content of a file by Lightning, with what resuming needs besides weights; tensors stay on the disk.

    Raises:
        CheckpointError: for a file that cannot be read, or that holds weights without the state of their training.
    """
    content = {} if path.suffix in (".safetensors", ".json") else _load_plain_zip(path)
    if missing := [key for key in TRAINING_STATE if not isinstance(content, dict) or key not in content]:
        raise CheckpointError(
            f"{path} has weights only, nothing that training could go on from (it has no {missing[0]}); "
            "take last.ckpt or an epoch_*.ckpt of a run"
        )
    return dict(content)


def _load_plain_zip(path: Path) -> Any:
    """The content of a file by `torch.save`, if it is whole and holds only tensors and plain values."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path) from error
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        # what the restricted unpickler and the zip reader raise on bytes that are not what they expect
        raise CheckpointError(f"{path} is damaged and cannot be read; copy or download it again") from error


def _refusal(path: Path) -> CheckpointError:
    """Says, from a static look at the pickle, what it wanted to import; nothing of it has been executed."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        names = []
    if any(_CHEMELEON2.match(name) for name in names):
        return CheckpointError(
            f"{path} is a Chemeleon2 checkpoint; `latentite.hub.resolve` gives it in our format, as every command "
            "that takes a checkpoint does (nothing in the file was executed)"
        )
    asked = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return CheckpointError(
        f"{path} asks to run code when it is loaded ({asked or 'objects that are not plain values'}), so it "
        "was refused and nothing in it was executed; our checkpoints hold tensors and plain values only"
    )
