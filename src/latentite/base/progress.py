"""The progress bar of reading: rows done and rows per second, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def row_progress(description: str, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar that counts rows; gives a function that adds to the count. Silent when off or not on a
    terminal."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0.0:,.0f} rows/s", style="cyan")

    console = Console(stderr=True)
    if not enabled or not console.is_terminal:
        yield lambda count: None
        return
    counter = TextColumn("{task.completed:,.0f} rows")
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        counter,
        Rate(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(description, total=None)
        yield lambda count: bar.advance(task, count)
