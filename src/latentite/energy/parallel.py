"""Energies and relaxations of many crystals: in several one-thread processes, without those that are known already.

The crystals are cut into chunks that depend on nothing but their order and sizes, so that the number of workers does
not change a bit of the result, and what is finished is kept chunk by chunk.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch

from latentite.base.machine import map_in_order
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.energy.catalogue import identity, potential_by_name
from latentite.energy.potential import Potential, TheoryLevel
from latentite.energy.relax import Relaxed, RelaxStatus, relax
from latentite.energy.settings import RelaxSettings

ATOMS_PER_CHUNK = 256
"""As many as one call of the potential takes by default; more would only make progress coarser."""

Record = dict[str, Any]
"""Result of one crystal as plain JSON values: the fields of `Relaxed`, None for numbers that are none."""


class Kept(Protocol):
    """Records by key, as `evaluation/store.py` keeps them."""

    def get_many(self, hashes: Sequence[str]) -> dict[str, Any]: ...
    def put_many(self, values: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RelaxHow:
    """The potential, and what is done with it."""

    potential: str = "chgnet"
    """As `potential_by_name` takes it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of an ASE calculator, plain values."""
    theory: TheoryLevel | None = None
    """Level of theory of an ASE calculator's energies."""
    settings: RelaxSettings = field(default_factory=RelaxSettings)

    def load(self) -> Potential:
        """The potential, the same object each time in one process; see `potential_by_name` for its errors."""
        return _loaded(self.potential, json.dumps(dict(self.arguments), sort_keys=True), self.theory)

    def identity(self) -> dict[str, Any] | None:
        """Everything that the result depends on besides the crystal, as plain values; None where nobody can tell which
        potential it is."""
        potential = identity(self.load().card)
        return None if potential is None else {"potential": potential, "settings": asdict(self.settings)}


def relax_many(
    crystals: Sequence[CrystalArrays],
    how: RelaxHow,
    *,
    keys: Sequence[str] = (),
    kept: Kept | None = None,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Relaxed:
    """Energies, or relaxations, of crystals as they come; one result per crystal, in order.

    Args:
        crystals: any numbers at all.
        how: potential and settings.
        keys: of each crystal, for `kept`.
        kept: results of the same `how.identity()`; finished ones are added as they come, except those that
            the potential failed on.
        workers: processes of one thread; None for all cores. They do not change the result.
        advance: told of how many more crystals the result is known.

    Raises:
        ImportError: when the potential's package is not installed.
        ValueError: for an unknown potential, or a number of keys that is not that of the crystals.
    """
    how.load()  # tells of what is wrong before any work; forked workers have it already
    if kept is not None and len(keys) != len(crystals):
        raise ValueError(f"one key per crystal is needed, got {len(keys)} for {len(crystals)}")
    known = kept.get_many(keys) if kept is not None else {}
    records: dict[int, Record] = {k: known[key] for k, key in enumerate(keys) if key in known}
    advance(len(records))
    chunks = [[k for k in chunk if k not in records] for chunk in chunks_of(crystals)]
    items = [(chunk, [crystals[k] for k in chunk]) for chunk in chunks if chunk]

    def keep(item: tuple[list[int], list[CrystalArrays]], results: list[Record]) -> None:
        records.update(zip(item[0], results, strict=True))
        if kept is not None:
            final = {keys[k]: records[k] for k in item[0] if _is_final(records[k])}
            kept.put_many(final)

    map_in_order(
        partial(_relax_chunk, how),
        items,
        workers=workers,
        advance=lambda item: advance(len(item[0])),
        keep=keep,
        # A process that has used a GPU (or could have) cannot be forked and compute derivatives.
        context=multiprocessing.get_context("spawn") if torch.cuda.is_available() else None,
    )
    return _collected([records[k] for k in range(len(crystals))], crystals)


def chunks_of(crystals: Sequence[CrystalArrays]) -> list[list[int]]:
    """Positions of neighbouring crystals, with at most `ATOMS_PER_CHUNK` atoms or a single larger one."""
    chunks: list[list[int]] = []
    size = 0
    for position, crystal in enumerate(crystals):
        if not chunks or size + crystal.num_atoms > ATOMS_PER_CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append(position)
        size += crystal.num_atoms
    return chunks


def double_batch(crystals: Sequence[CrystalArrays]) -> CrystalBatch:
    """A batch in float64; `CrystalBatch.from_arrays` rounds to float32."""
    if not crystals:
        return CrystalBatch.from_arrays([])
    numbers = np.concatenate([crystal.atomic_numbers for crystal in crystals])
    coords = np.concatenate([crystal.frac_coords for crystal in crystals])
    lattice = np.stack([crystal.lattice for crystal in crystals])
    return CrystalBatch(
        atomic_numbers=torch.from_numpy(numbers.astype(np.int64)),
        frac_coords=torch.from_numpy(coords.astype(np.float64)),
        lattice=torch.from_numpy(lattice.astype(np.float64)),
        num_atoms=torch.tensor([crystal.num_atoms for crystal in crystals]),
    )


@lru_cache(maxsize=2)
def _loaded(name: str, arguments: str, theory: TheoryLevel | None) -> Potential:
    return potential_by_name(name, arguments=json.loads(arguments), theory=theory)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: on small crystals more do not help, and the last bits depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _relax_chunk(how: RelaxHow, item: tuple[list[int], list[CrystalArrays]]) -> list[Record]:
    with one_thread():
        return _records(relax(how.load(), double_batch(item[1]), how.settings))


def _is_final(record: Record) -> bool:
    """True when another try would end in the same way; a potential can fail for want of memory."""
    return bool(record["status"] != RelaxStatus.POTENTIAL_FAILED)


def _records(relaxed: Relaxed) -> list[Record]:
    forces = relaxed.forces.split(relaxed.crystals.num_atoms.tolist())
    records = []
    for k, crystal in enumerate(relaxed.crystals.to_arrays()):
        is_judged = bool(relaxed.is_judged[k])
        has_derivatives = is_judged and bool(relaxed.stress[k].isfinite().all())
        records.append(
            {
                "frac_coords": crystal.frac_coords.tolist(),
                "lattice": crystal.lattice.tolist(),
                "start_energy": float(relaxed.start_energy[k]) if is_judged else None,
                "energy": float(relaxed.energy[k]) if is_judged else None,
                "forces": forces[k].tolist() if has_derivatives else None,
                "stress": relaxed.stress[k].tolist() if has_derivatives else None,
                "steps": int(relaxed.steps[k]),
                "status": relaxed.status[k].value,
                "reason": relaxed.reasons[k],
            }
        )
    return records


def _collected(records: Sequence[Record], crystals: Sequence[CrystalArrays]) -> Relaxed:
    """The inverse of `_records`."""

    def numbers(name: str) -> torch.Tensor:
        return torch.tensor(
            [np.nan if record[name] is None else record[name] for record in records], dtype=torch.float64
        )

    def array(record: Record, name: str, *shape: int) -> np.ndarray:
        return (
            np.full(shape, np.nan) if record[name] is None else np.array(record[name], float).reshape(shape)
        )

    ends = [
        CrystalArrays(
            crystal.atomic_numbers,
            array(record, "frac_coords", crystal.num_atoms, 3),
            array(record, "lattice", 3, 3),
        )
        for record, crystal in zip(records, crystals, strict=True)
    ]
    forces = [array(record, "forces", end.num_atoms, 3) for record, end in zip(records, ends, strict=True)]
    stress = [array(record, "stress", 3, 3) for record in records]
    return Relaxed(
        crystals=double_batch(ends),
        start_energy=numbers("start_energy"),
        energy=numbers("energy"),
        forces=torch.from_numpy(np.concatenate([np.zeros((0, 3)), *forces])),
        stress=torch.from_numpy(np.stack(stress) if stress else np.zeros((0, 3, 3))),
        steps=torch.tensor([record["steps"] for record in records], dtype=torch.long),
        status=tuple(RelaxStatus(record["status"]) for record in records),
        reasons=tuple(record["reason"] for record in records),
    )
