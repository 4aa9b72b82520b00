"""`CrystalDataset`: a whole split in memory, and on disk as one memory-mapped safetensors file.

A file holds the tensors, ids and rejections (as JSON bytes), and everything else in the header. It is written under a
temporary name and renamed, so a file with the right name is always whole; two writers of the same file write the same
bytes, and the last one wins. What is read is held against the hashes that were written with it, so that a file that a
disk or a copy has damaged is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentite.base.files import replacing
from latentite.crystal import CrystalBatch
from latentite.data.readers.records import Rejection


@dataclass(frozen=True, kw_only=True, slots=True)
class CrystalDataset:
    """One split: all its crystals packed on the CPU, float32.

    Raises:
        ValueError: when the number of ids and of crystals differ.
    """

    crystals: CrystalBatch
    """Numeric properties included, NaN where a label is missing."""
    ids: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each categorical property the names behind its integer codes."""
    content_hash: str
    """sha256 that changes with any row, option or version of the canonical form."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.crystals):
            raise ValueError(
                f"a dataset needs one id per crystal, got {len(self.ids)} ids for {len(self.crystals)}"
            )

    def __len__(self) -> int:
        return len(self.ids)


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
    """Turns whatever a damaged file makes readers raise into one error that names it."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must be a whole dataset, got a damaged one ({error}); build it again"
        ) from error


# ------------------------------------------------------------------------------- features of atoms


def write_atom_features(path: Path, dataset: CrystalDataset, features: Float[Tensor, "atom feature"]) -> None:
    """Write features of every atom of a split, in its order, for `attach_features`.

    Atoms without features are given NaN, which the alignment loss leaves out.

    Args:
        path: `SPLIT.safetensors` in the folder of `data.atom_features_path`.
        dataset: the split.
        features: one row per atom.

    Raises:
        ValueError: when there are not as many rows as atoms.
    """
    from safetensors.torch import save_file

    if len(features) != dataset.crystals.total_atoms:
        raise ValueError(
            f"features must have one row per atom ({dataset.crystals.total_atoms}), got {len(features)}"
        )
    with replacing(path) as temporary:
        save_file(
            {"features": features.contiguous()}, temporary, metadata={"content_hash": dataset.content_hash}
        )


def attach_features(dataset: CrystalDataset, path: Path) -> CrystalDataset:
    """A split with the per-atom features of a file made by `write_atom_features`.

    Raises:
        ValueError: if the file is missing or was made for something else.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"atom_features_path must hold {path.name}, but {path} does not exist")
    with safe_open(path, framework="pt") as file:
        made_for = (file.metadata() or {}).get("content_hash")
        features = file.get_tensor("features").float()
    if made_for != dataset.content_hash or len(features) != dataset.crystals.total_atoms:
        raise ValueError(
            f"{path} must hold features of {dataset.crystals.total_atoms} atoms of the split "
            f"{dataset.content_hash}, got {len(features)} atoms of {made_for}; compute them again"
        )
    return replace(dataset, crystals=replace(dataset.crystals, atom_features=features))
