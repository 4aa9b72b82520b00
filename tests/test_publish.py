"""Folders that appear under their name only when they are whole."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from latentite.base.publish import publishing


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
