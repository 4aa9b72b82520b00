"""What the steps of an evaluation share: how they tell of their progress, and how their time is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Stage = Callable[[str, int | None], Callable[[int], None]]
"""Told that a step of so many structures (None: unknown) begins; gives what to tell of those that are done."""


def silent(text: str, total: int | None) -> Callable[[int], None]:
    """A `Stage` that says nothing."""
    return lambda count: None


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the wall time of the block to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 3)
