"""Results kept by the structure that they belong to: what was computed once is not computed again.

    store = ResultStore.open(namespace("space_group", 1, {"symprec": 0.1}))
    known = store.get_many(hashes)
    store.put_many({hash: 225})

A convenience that must never cost an evaluation: a damaged file is set aside, and where the cache cannot be read or
written every result simply counts as unknown, with one warning.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from latentite.base.files import cache_dir
from latentite.crystal_arrays import CrystalArrays

log = logging.getLogger(__name__)

_PATIENCE = 60.0
"""Seconds to wait while another process writes."""
_AT_ONCE = 500
"""Hashes in one query; SQLite itself allows 999 at the least."""
_CREATE = "CREATE TABLE IF NOT EXISTS results (hash TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"

Answer = TypeVar("Answer")


def structure_hash(arrays: CrystalArrays) -> str:
    """sha256 of a crystal as it stands: atomic numbers, fractional coordinates and lattice (Å), in float64.

    Every bit counts, the order of the atoms included: equal hashes mean the same input, not the same crystal.
    """
    digest = hashlib.sha256(arrays.num_atoms.to_bytes(8, "little"))
    digest.update(np.ascontiguousarray(arrays.atomic_numbers, dtype="<i8").tobytes())
    for values in (arrays.frac_coords, arrays.lattice):
        digest.update((np.ascontiguousarray(values, dtype="<f8") + 0.0).tobytes())  # -0.0 becomes 0.0
    return digest.hexdigest()


def namespace(metric: str, version: int, settings: Mapping[str, Any]) -> str:
    """Name under which results may be shared: a metric, the version of its code, and its settings.

    Args:
        metric: letters, digits, `_` and `-`.
        version: raised whenever the same settings give other values.
        settings: plain values that the results depend on, versions of libraries included.
    """
    text = json.dumps(dict(settings), sort_keys=True)
    return f"{metric}-v{version}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultStore:
    """Plain JSON values by hash, in an SQLite file of one namespace.

    Each call opens the file anew, so that nothing is shared with forked workers, and writes all of its values or
    none; several processes may read and write at once.
    """

    path: Path

    @classmethod
    def open(cls, namespace: str, directory: str | Path | None = None) -> ResultStore:
        """The store of a namespace; nothing is written before the first result.

        Args:
            namespace: letters, digits, `.`, `_` and `-`; becomes the name of the file.
            directory: where the file lies; by default `evaluation` in the cache.

        Raises:
            ValueError: for a namespace that is no file name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", namespace):
            raise ValueError(
                f"a namespace must consist of letters, digits, '.', '_' and '-', got {namespace!r}"
            )
        folder = cache_dir() / "evaluation" if directory is None else Path(directory)
        return cls(path=folder / f"{namespace}.sqlite")

    def get_many(self, hashes: Sequence[str]) -> dict[str, Any]:
        """Values of those hashes that have one."""
        wanted = list(dict.fromkeys(hashes))

        def read(database: sqlite3.Connection) -> dict[str, Any]:
            values: dict[str, Any] = {}
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT hash, value FROM results WHERE hash IN ({marks})", part)
                values.update((key, json.loads(value)) for key, value in rows)
            return values

        return self._try(read, {}) if wanted and self.path.is_file() else {}

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Keep values, all in one transaction; a newer value replaces an older one."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        if rows:
            self._try(
                lambda database: database.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows),
                None,
            )

    def _try(self, work: Callable[[sqlite3.Connection], Answer], otherwise: Answer) -> Answer:
        for _ in range(2):
            try:
                with _opened(self.path) as database:
                    return work(database)
            except (sqlite3.OperationalError, OSError) as error:  # no space, no permission, locked for long
                log.warning("results cannot be kept in %s (%s); they are computed anew", self.path, error)
                return otherwise
            except (sqlite3.DatabaseError, ValueError) as error:  # no database, or a value that is no JSON
                self._set_aside(error)
        return otherwise

    def _set_aside(self, error: Exception) -> None:
        broken = self.path.with_name(f"{self.path.name}.broken-{os.getpid()}")
        log.warning("%s is damaged (%s); it is set aside as %s", self.path, error, broken.name)
        # The journal goes with its database, else the new file would be "repaired" with it.
        for ending in ("-journal", ""):
            source = self.path.with_name(self.path.name + ending)
            try:
                os.replace(source, broken.with_name(broken.name + ending))
            except FileNotFoundError:
                continue  # no journal, or another process was quicker
            except OSError as problem:
                log.warning("%s cannot be set aside (%s)", source, problem)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction, which ends with the block: kept when it ends well, else undone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_PATIENCE)) as database:
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(_CREATE)
        with database:
            yield database


NumberRow = Float[np.ndarray, " number"]


def kept_rows(
    store: ResultStore,
    keys: Sequence[str],
    compute: Callable[[list[int]], Iterable[NumberRow]],
    *,
    begin: Callable[[int], Callable[[int], None]],
    at_once: int = 256,
) -> list[NumberRow]:
    """One row per key, from the store where it is known; with float32's seven digits either way.

    Args:
        store: of this kind of row and its settings.
        keys: what a row belongs to; equal keys share one.
        compute: rows of the positions in `keys` that it is given, in order; NaN for what cannot be computed is kept
            as well.
        begin: told how many rows are missing, unless none is; gives what to tell of those that are done.
        at_once: rows in one block; it does not change the result.
    """
    known = {key: _unpacked(text) for key, text in store.get_many(keys).items()}
    first: dict[str, int] = {}
    for place, key in enumerate(keys):
        if key not in known:
            first.setdefault(key, place)
    missing = list(first)
    advance = begin(len(missing)) if missing else lambda count: None
    for start in range(0, len(missing), at_once):
        block = missing[start : start + at_once]
        computed = dict(zip(block, compute([first[key] for key in block]), strict=True))
        texts = {key: _packed(row) for key, row in computed.items()}
        store.put_many(texts)
        known |= {key: _unpacked(text) for key, text in texts.items()}
        advance(len(block))
    return [known[key] for key in keys]


def _packed(row: NumberRow) -> str:
    # NaN is no JSON, and SQLite gives rows above 1000 bytes a page of 4096 each.
    return base64.b64encode(np.ascontiguousarray(row, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> NumberRow:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
