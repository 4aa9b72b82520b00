"""A data set by orbits: its structures are encoded once, in several processes, and kept in the cache.

Ids and labels are the data set's own and are joined afterwards: other conditions of the same crystals encode nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentite.base.files import cache_dir as default_cache_dir
from latentite.base.machine import map_in_order
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import CrystalDataset, from_bytes, save_tensors, take, to_bytes
from latentite.symmetry.descriptions import Orbits
from latentite.symmetry.encode import (
    FALLBACK_SYMPREC,
    SYMPREC,
    EncodingError,
    encode_p1,
    encode_with_fallback,
)
from latentite.symmetry.orbits import OrbitBatch

log = logging.getLogger(__name__)

ENCODING_VERSION = 4
"""Raised whenever a crystal gets another description; caches of another version are made again."""
_CHUNK = 64
"""Crystals that a worker process encodes at a time."""
_ORBITS = ("space_group", "cell", "num_orbits", "position", "element", "coords")
"""Tensors of an `OrbitBatch`."""

ChunkEncoder: TypeAlias = "Callable[[Sequence[CrystalArrays]], list[Orbits | str]]"
"""Makes of each crystal its description, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingRejection:
    """A crystal of a data set without a description by orbits."""

    row: int
    """Position in the data set."""
    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedDataset:
    """One split by orbits; `len(dataset) = len(encoded) + len(rejections)`."""

    orbits: OrbitBatch
    """With the properties of the data set."""
    rows: Int[Tensor, " crystal"]
    """Position of each crystal in the data set."""
    reductions: Int[Tensor, "crystal 3 3"]
    """Integer matrices R for which R @ primitive lattice has Minkowski-reduced rows."""
    rejections: tuple[EncodingRejection, ...]
    content_hash: str
    """sha256 that changes with the structures, the tolerances and the version of the encoding, and with no label."""

    def __len__(self) -> int:
        return len(self.orbits)


def encode_dataset(
    dataset: CrystalDataset,
    *,
    symprec: float = SYMPREC,
    fallback: float | None = FALLBACK_SYMPREC,
    workers: int | None = None,
    cache_dir: Path | None = None,
    use_cache: bool = True,
) -> EncodedDataset:
    """All crystals of a split in their canonical descriptions, from the cache when it holds exactly these.

    Args:
        dataset: the split.
        symprec: Å; tolerance of the symmetry.
        fallback: Å; where the first one gives no description that gives back the crystal. None: there is none.
        workers: processes; None for all cores.
        cache_dir: where caches live; None for `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`.
        use_cache: False neither reads nor writes the cache.

    Raises:
        ValueError: for a tolerance that is not positive.
    """
    for name, value in (("symprec", symprec), ("fallback", fallback)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be a positive number of Å, got {value}")
    options = {"symprec": symprec, "fallback": fallback, "setting": "standard"}
    function = partial(_encode_chunk, symprec, fallback)
    return _through_cache(
        dataset, function, options, workers=workers, cache_dir=cache_dir, use_cache=use_cache
    )


def encode_dataset_p1(
    dataset: CrystalDataset,
    *,
    workers: int | None = None,
    cache_dir: Path | None = None,
    use_cache: bool = True,
) -> EncodedDataset:
    """All crystals of a split without symmetry (`encode.encode_p1`); arguments as for `encode_dataset`."""
    return _through_cache(
        dataset,
        _encode_chunk_p1,
        {"setting": "p1"},
        workers=workers,
        cache_dir=cache_dir,
        use_cache=use_cache,
    )


def minkowski_reductions(lattices: Float[np.ndarray, "crystal 3 3"]) -> Int[np.ndarray, "crystal 3 3"]:
    """Integer matrices R for which R @ lattice has Minkowski-reduced rows."""
    from moyopy import minkowski_reduce

    # moyopy's transformation T means reduced = T.T @ lattice.
    matrices = [minkowski_reduce(lattice)[1] for lattice in lattices.tolist()]
    return np.array(matrices, dtype=np.int64).reshape(-1, 3, 3).transpose(0, 2, 1)


def _encode_chunk(
    symprec: float, fallback: float | None, crystals: Sequence[CrystalArrays]
) -> list[Orbits | str]:
    """Each crystal's description, or the reason why there is none."""
    results: list[Orbits | str] = []
    for crystal in crystals:
        try:
            results.append(encode_with_fallback(crystal, symprec=symprec, fallback=fallback))
        except EncodingError as error:
            results.append(str(error))
    return results


def _encode_chunk_p1(crystals: Sequence[CrystalArrays]) -> list[Orbits | str]:
    """The same without symmetry."""
    results: list[Orbits | str] = []
    for crystal in crystals:
        try:
            results.append(encode_p1(crystal))
        except EncodingError as error:
            results.append(str(error))
    return results


def _through_cache(
    dataset: CrystalDataset,
    function: ChunkEncoder,
    options: Mapping[str, object],
    *,
    workers: int | None,
    cache_dir: Path | None,
    use_cache: bool,
) -> EncodedDataset:
    """The encoded split, from the cache or made anew and kept there, with ids and properties of the data set."""
    key = {"structures": _structures_hash(dataset.crystals), "version": ENCODING_VERSION, **options}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    path = folder / "orbits" / f"{digest}.safetensors" if use_cache else None
    tensors = None if path is None else _read(path, digest, len(dataset))
    if tensors is None:
        tensors = _encode(dataset.crystals, function, workers=workers)
        if path is not None:
            save_tensors(path, tensors, {"latentite.orbits": digest})
    encoded = _joined(tensors, dataset, digest)
    _log_rejections(encoded, len(dataset))
    return encoded


def _structures_hash(crystals: CrystalBatch) -> str:
    """sha256 of all that is encoded."""
    digest = hashlib.sha256()
    for tensor in (crystals.num_atoms, crystals.atomic_numbers, crystals.frac_coords, crystals.lattice):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _encode(crystals: CrystalBatch, function: ChunkEncoder, *, workers: int | None) -> dict[str, Tensor]:
    """The content of a file of the cache: orbits, rows, reductions, and why other rows have none."""
    arrays = crystals.to_arrays()
    chunks = [arrays[start : start + _CHUNK] for start in range(0, len(arrays), _CHUNK)]
    results = [one for chunk in map_in_order(function, chunks, workers=workers) for one in chunk]
    described = {row: result for row, result in enumerate(results) if not isinstance(result, str)}
    orbits = OrbitBatch.pack(list(described.values()))
    return {
        **{name: getattr(orbits, name) for name in _ORBITS},
        "rows": torch.tensor(list(described), dtype=torch.long),
        "reductions": torch.from_numpy(minkowski_reductions(orbits.primitive_lattices().numpy())),
        "rejections": to_bytes([[row, result] for row, result in enumerate(results) if row not in described]),
    }


def _read(path: Path, digest: str, num_crystals: int) -> dict[str, Tensor] | None:
    """From the cache; None when it is not there, or damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            if (handle.metadata() or {}).get("latentite.orbits") != digest:
                raise ValueError("it must hold the orbits that its name says")
            tensors = {name: take(handle, name) for name in (*_ORBITS, "rows", "reductions", "rejections")}
        if len(tensors["rows"]) + len(from_bytes(tensors["rejections"])) != num_crystals:
            raise ValueError(f"it must hold {num_crystals} crystals, got {len(tensors['rows'])}")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        log.warning("%s in the cache is damaged and is made again: %s", path, error)
        return None
    return tensors


def _joined(tensors: Mapping[str, Tensor], dataset: CrystalDataset, digest: str) -> EncodedDataset:
    """The content of a file of the cache with the ids and properties of a data set."""
    rows = tensors["rows"]
    properties = {name: values[rows] for name, values in dataset.crystals.properties.items()}
    return EncodedDataset(
        orbits=OrbitBatch(**{name: tensors[name] for name in _ORBITS}, properties=properties),
        rows=rows,
        reductions=tensors["reductions"],
        rejections=tuple(
            EncodingRejection(row=row, id=dataset.ids[row], reason=reason)
            for row, reason in from_bytes(tensors["rejections"])
        ),
        content_hash=digest,
    )


def _log_rejections(encoded: EncodedDataset, num_crystals: int) -> None:
    """Say which crystals have no description, and why."""
    if not encoded.rejections:
        return
    reasons = Counter(rejection.reason for rejection in encoded.rejections).most_common(3)
    log.warning(
        "%d crystals = %d described by orbits + %d rejected (%s)",
        num_crystals,
        len(encoded),
        len(encoded.rejections),
        "; ".join(f"{count}: {reason}" for reason, count in reasons),
    )
