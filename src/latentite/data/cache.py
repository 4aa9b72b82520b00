"""Packed datasets on disk: one safetensors file per split, memory-mapped when read.

A file holds the tensors of a `CrystalDataset`, its ids and rejections as JSON bytes, and everything else in
the header. It is written under a temporary name and renamed, so a file with the right name is always whole;
two writers of the same file write the same bytes, and the last one wins. What is read is held against the hashes that
were written with it, so that a file that a disk or a copy has damaged is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from latentite.base.files import replacing
from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.readers.records import Rejection

FORMAT = 1
"""Version of the layout of the file; files of another version are not read."""

_PROPERTY = "property."


def content_hash(crystals: CrystalBatch, ids: Sequence[str], categories: Mapping[str, Sequence[str]]) -> str:
    """sha256 over all tensors, ids and category names of a dataset."""
    digest = hashlib.sha256()
    tensors = [crystals.atomic_numbers, crystals.frac_coords, crystals.lattice, crystals.num_atoms]
    for tensor in tensors + [crystals.properties[name] for name in sorted(crystals.properties)]:
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(
        json.dumps([sorted(crystals.properties), list(ids), dict(categories)], sort_keys=True).encode()
    )
    return digest.hexdigest()


def to_bytes(value: object) -> torch.Tensor:
    """A plain value as JSON, for a file of tensors."""
    return torch.from_numpy(np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy())


def from_bytes(tensor: torch.Tensor) -> list:
    """The list that `to_bytes` was given."""
    return json.loads(tensor.numpy().tobytes())


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and texts as one file, atomically, with the hash of every tensor."""
    digests = {name: _digest(tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's own; safetensors would let nobody else read the file
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            {**metadata, "sha256": json.dumps(digests)},
        )
        temporary.chmod(mode)


def take(handle: safe_open, name: str) -> torch.Tensor:
    """One tensor of a file of `save_tensors`, as it was written.

    Raises:
        ValueError: when it has changed since.
    """
    tensor = handle.get_tensor(name)
    digests = json.loads((handle.metadata() or {}).get("sha256", "{}"))  # the first files had none
    if name in digests and digests[name] != _digest(tensor):
        raise ValueError(f"{name} has changed since it was written")
    return tensor


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def write_dataset(
    path: str | Path,
    dataset: CrystalDataset,
    *,
    rejections: Sequence[Rejection] = (),
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a dataset as one file, atomically.

    Args:
        path: the file; its folder is made when missing.
        dataset: what to write.
        rejections: rows that did not enter it, kept for the reports of later readers.
        notes: plain texts for the header (canonical version, options, counts, ...).
    """
    path = Path(path)
    crystals = dataset.crystals
    tensors = {
        "atomic_numbers": crystals.atomic_numbers,
        "frac_coords": crystals.frac_coords,
        "lattice": crystals.lattice,
        "num_atoms": crystals.num_atoms,
        "ids": to_bytes(dataset.ids),
        "rejections": to_bytes([asdict(rejection) for rejection in rejections]),
    } | {_PROPERTY + name: values for name, values in crystals.properties.items()}
    metadata = dict(notes or {}) | {
        "latentite.dataset": str(FORMAT),
        "content_hash": content_hash(crystals, dataset.ids, dataset.categories),
        "categories": json.dumps(dataset.categories),
        # safetensors gives the tensors back in its own order; this keeps the order of the properties.
        "properties": json.dumps(list(crystals.properties)),
    }
    save_tensors(path, tensors, metadata)


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise FileNotFoundError(f"dataset file must exist, got {path}; build it with `latentite data build`")
    try:
        handle = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} must be a dataset written by latentite, got a file that is not: {error}"
        ) from error
    version = (handle.metadata() or {}).get("latentite.dataset")
    if version != str(FORMAT):
        raise ValueError(f"{path} must have dataset format {FORMAT}, got {version}; build it again")
    return handle


def read_dataset(path: str | Path) -> CrystalDataset:
    """A dataset from its file, whose content is held against its hash; the tensors are mapped into memory.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is not a dataset of this format, or is damaged.
    """
    with _open(Path(path)) as handle, _whole(path):
        metadata = handle.metadata()
        names = json.loads(metadata["properties"])
        crystals = CrystalBatch(
            atomic_numbers=handle.get_tensor("atomic_numbers"),
            frac_coords=handle.get_tensor("frac_coords"),
            lattice=handle.get_tensor("lattice"),
            num_atoms=handle.get_tensor("num_atoms"),
            properties={name: handle.get_tensor(_PROPERTY + name) for name in names},
        )
        ids = from_bytes(handle.get_tensor("ids"))
        categories = {name: tuple(values) for name, values in json.loads(metadata["categories"]).items()}
        digest = metadata["content_hash"]
        if content_hash(crystals, ids, categories) != digest:
            raise ValueError("its content has changed since it was written")
    return CrystalDataset(crystals=crystals, ids=tuple(ids), categories=categories, content_hash=digest)


def read_rejections(path: str | Path) -> list[Rejection]:
    """The rows that did not enter the dataset of this file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is not a dataset of this format, or is damaged.
    """
    with _open(Path(path)) as handle, _whole(path):
        return [Rejection(**entry) for entry in from_bytes(take(handle, "rejections"))]


@contextmanager
def _whole(path: str | Path) -> Iterator[None]:
    """Whatever a damaged file makes readers raise, as one error that names it."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a whole dataset, got a damaged one ({error}); build it again"
        ) from error


def read_notes(path: str | Path) -> dict[str, str]:
    """The header of a dataset file."""
    with _open(Path(path)) as handle:
        return dict(handle.metadata())
