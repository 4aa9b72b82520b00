"""Folders that appear under their name only when they are whole; the one writer of CSV and the one progress bar."""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
from pathlib import Path

import pytest
from rich.console import Console

from latentite.base import progress
from latentite.base.files import cell, csv_lines, publishing, write_csv
from latentite.base.progress import ProgressBars, progress_bar


def _publish(folder: Path, text: str, barrier: object) -> None:
    with publishing(folder) as temporary:
        (temporary / "file").write_text(text)
        barrier.wait()  # type: ignore[attr-defined]  # both are ready before either renames


def test_two_builders_at_once_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_publish, args=(tmp_path / "x", text, barrier)) for text in ("1", "2")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert (tmp_path / "x" / "file").read_text() in ("1", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    def fail() -> None:
        with publishing(tmp_path / "x") as temporary:
            (temporary / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_cell_is_empty_where_there_is_no_finite_number() -> None:
    values = [None, math.nan, math.inf, 1 / 3, 12, True, False, "a, b", 0.0]
    assert list(map(cell, values)) == ["", "", "", "0.333333", "12", "yes", "no", "a, b", "0"]


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    write_csv(path, ["id", "value"], ([name, value] for name, value in [('a,\n"b"', 0.5), ("c", None)]))
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["id", "value"], ['a,\n"b"', "0.5"], ["c", ""]]


def test_an_error_on_the_way_leaves_the_older_table(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["id"], [["a"]])
    with pytest.raises(ZeroDivisionError):
        write_csv(path, ["id"], ([1 / n] for n in (1, 0)))
    assert path.read_text().split() == ["id", "a"]
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]


def test_lines_of_a_growing_file_keep_all_digits() -> None:
    assert csv_lines([[1 / 3, "x"], [None, ""]]) == "0.3333333333333333,x\n,\n"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    text = io.StringIO()

    def console(stderr: bool) -> Console:
        assert stderr
        return Console(file=text, force_terminal=True, width=120)

    monkeypatch.setattr(progress, "Console", console)
    return text


def test_a_bar_shows_count_rate_and_note(terminal: io.StringIO) -> None:
    with ProgressBars("rows") as bars:
        known, unknown = bars.add("read", 20, done=5), bars.add("count")
        known.advance(2)
        unknown.set(1234, note="7 of them bad")
    shown = terminal.getvalue()
    for text in ("read", "7/20", "rows/s", "count", "1,234", "7 of them bad"):
        assert text in shown


def test_bytes_are_shown_as_such_and_a_total_may_come_later(terminal: io.StringIO) -> None:
    with ProgressBars("bytes") as bars:
        bar = bars.add("file")
        bar.set(1_500_000, total=3_000_000)
    assert "1.5 MB/3.0 MB" in terminal.getvalue()


def test_a_bar_begins_anew_for_the_next_step(terminal: io.StringIO) -> None:
    bars = ProgressBars(transient=True)
    bars.start()
    bar = bars.add("")
    bar.restart("epoch 1", 10)
    bar.set(10, note="loss 1")
    bar.restart("epoch 2", 4)
    bars.stop()
    assert "epoch 2" in terminal.getvalue()
    assert "0/4" in terminal.getvalue()


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("read", 2) as bar:
        bar.advance(2)
    assert capsys.readouterr() == ("", "")
