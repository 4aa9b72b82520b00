"""Progress of a sampling run in structures per second: a bar on a terminal, else a line per window."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from latentite.base.progress import ProgressBars

log = logging.getLogger(__name__)


class RunProgress:
    """A context manager that is told of every batch and of every finished window.

    Args:
        total: crystals to sample.
        done: of them before this session.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._begun_at, self._shown = total, done, done
        self._start = time.perf_counter()
        self._bars = ProgressBars()
        self._bar = self._bars.add("sample", total, done=done)

    def __enter__(self) -> RunProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def batch(self, count: int) -> None:
        """So many more crystals of the current window left the chain."""
        self._show(min(self._shown + count, self._total))

    def window(self, done: int) -> None:
        """So many crystals are written."""
        self._show(done)
        if not self._bars.is_shown:
            log.info("%d of %d crystals, %s", done, self._total, self._rate(done))

    def _show(self, done: int) -> None:
        self._shown = done
        self._bar.set(done, note=self._rate(done))

    def _rate(self, done: float) -> str:
        seconds = time.perf_counter() - self._start
        return f"{(done - self._begun_at) / max(seconds, 1e-9):.3g} structures/s"
