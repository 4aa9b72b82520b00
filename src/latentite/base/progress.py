"""The one progress bar: how many are done, how fast, and how long it will take, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar:
    """One line: the progress of one step."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, count: float) -> None:
        """So many more are done."""
        self._bars.advance(self._task, count)

    def set(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        """So many are done by now, of `total` where that is known now; the note takes the place of the rate."""
        more: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(self._task, completed=done, total=total, **more)

    def restart(self, text: str, total: float | None) -> None:
        """The same line for the next step."""
        self._bars.reset(self._task, total=total, description=text)

    def remove(self) -> None:
        """Take the line away."""
        self._bars.remove_task(self._task)


class ProgressBars:
    """A context manager that shows bars on standard error, and nothing where that is no terminal.

    Args:
        unit: what is counted, in the plural, for the rate; `bytes` are shown as MB and the like; none: no rate.
        enabled: False shows nothing anywhere.
        transient: take the bars away at the end.
    """

    def __init__(self, unit: str = "", *, enabled: bool = True, transient: bool = False) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Count(unit),
            _Speed(unit),
            _Time(elapsed_when_finished=True),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=transient,
        )

    @property
    def is_shown(self) -> bool:
        """True if somebody sees the bars."""
        return not self._bars.disable

    def start(self) -> None:
        """Show them, until `stop`."""
        self._bars.start()

    def stop(self) -> None:
        """Leave them as they are now, or take them away."""
        self._bars.stop()

    def __enter__(self) -> ProgressBars:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add(self, text: str, total: float | None = None, *, done: int = 0) -> Bar:
        """A line for a step; a total of None is not known yet."""
        return Bar(self._bars, self._bars.add_task(text, total=total, completed=done, note=""))


@contextmanager
def progress_bar(
    text: str, total: int | None = None, *, unit: str = "", enabled: bool = True
) -> Iterator[Bar]:
    """A single bar for the time of a block."""
    with ProgressBars(unit, enabled=enabled) as bars:
        yield bars.add(text, total)


class _Count(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._is_bytes = unit == "bytes"

    def render(self, task: Task) -> Text:
        """`7/20`, or `7` of an unknown number."""
        known = [task.completed] if task.total is None else [task.completed, task.total]
        shown = "/".join(decimal(int(n)) if self._is_bytes else f"{n:,.0f}" for n in known)
        return Text(shown, style="progress.download")


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """The note of the line, or so many in a second."""
        speed = task.finished_speed or task.speed or 0.0
        if task.fields["note"] or not self._unit:
            return Text(task.fields["note"])
        return Text(
            f"{decimal(int(speed))}/s" if self._unit == "bytes" else f"{speed:,.0f} {self._unit}/s",
            style="progress.data.speed",
        )


class _Time(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        """The time that is left, or that has passed where nobody knows."""
        if task.total is None and task.elapsed is not None:
            return Text(str(timedelta(seconds=int(task.elapsed))), style="progress.elapsed")
        return super().render(task)
