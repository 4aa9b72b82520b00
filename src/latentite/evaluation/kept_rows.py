"""Rows of numbers that are slow to find, kept block by block: what was done before an interruption is not redone."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from latentite.evaluation.store import ResultStore

Row = Float[np.ndarray, " number"]


def kept_rows(
    store: ResultStore,
    keys: Sequence[str],
    compute: Callable[[list[int]], Iterable[Row]],
    *,
    begin: Callable[[int], Callable[[int], None]],
    at_once: int = 256,
) -> list[Row]:
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
        found = dict(zip(block, compute([first[key] for key in block]), strict=True))
        texts = {key: _packed(row) for key, row in found.items()}
        store.put_many(texts)
        known |= {key: _unpacked(text) for key, text in texts.items()}
        advance(len(block))
    return [known[key] for key in keys]


def _packed(row: Row) -> str:
    # NaN is no JSON, and SQLite gives rows above 1000 bytes a page of 4096 each.
    return base64.b64encode(np.ascontiguousarray(row, dtype="<f4").tobytes()).decode("ascii")


def _unpacked(text: str) -> Row:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
