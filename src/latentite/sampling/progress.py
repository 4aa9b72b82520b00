"""How far a sampling run is, in structures per second: a bar on a terminal, else a line per window."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class RunProgress:
    """A context manager that is told of every batch and of every finished window.

    Args:
        total: crystals to sample.
        done: of them before this session.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self._total, self._begun_at = total, done
        self._start = time.perf_counter()
        console = Console(stderr=True)
        columns = (TextColumn("sample"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("sample", total=total, completed=done, rate="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def batch(self, count: int) -> None:
        """So many more crystals of the current window left the chain."""
        shown = min(self._bar.tasks[0].completed + count, self._total)
        self._bar.update(self._task, completed=shown, rate=self._rate(shown))

    def window(self, done: int) -> None:
        """So many crystals are written."""
        self._bar.update(self._task, completed=done, rate=self._rate(done))
        if self._bar.disable:
            log.info("%d of %d crystals, %s", done, self._total, self._rate(done))

    def _rate(self, done: float) -> str:
        seconds = time.perf_counter() - self._start
        return f"{(done - self._begun_at) / max(seconds, 1e-9):.3g} structures/s"
