"""The store of results: what is kept comes back, and nothing that happens to its file ends an evaluation."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation.store import ResultStore, namespace, structure_hash


def filled(directory: Path, count: int = 2000) -> ResultStore:
    store = ResultStore.open("metric-v1", directory)
    store.put_many({f"{i:064x}": [i, None, 0.1 * i] for i in range(count)})
    return store


def test_what_is_kept_comes_back_and_the_rest_is_unknown(tmp_path: Path) -> None:
    store = filled(tmp_path)
    hashes = [f"{i:064x}" for i in range(1990, 2010)]
    assert store.get_many(hashes) == {f"{i:064x}": [i, None, 0.1 * i] for i in range(1990, 2000)}
    assert len(store.get_many([f"{i:064x}" for i in range(2000)])) == 2000
    store.put_many({hashes[0]: "newer"})
    assert store.get_many(hashes[:1]) == {hashes[0]: "newer"}
    assert ResultStore.open("other-v1", tmp_path).get_many(hashes) == {}


def test_reading_alone_writes_nothing(tmp_path: Path) -> None:
    assert ResultStore.open("metric-v1", tmp_path / "cache").get_many(["a"]) == {}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
def test_a_namespace_must_be_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a namespace must consist of"):
        ResultStore.open(name, tmp_path)


def test_namespaces_change_with_metric_version_and_settings_only() -> None:
    first = namespace("space_group", 1, {"symprec": 0.1, "library": "2.7"})
    assert first == namespace("space_group", 1, {"library": "2.7", "symprec": 0.1})
    others = {
        namespace("space_group", 2, {"symprec": 0.1, "library": "2.7"}),
        namespace("space_group", 1, {"symprec": 0.2, "library": "2.7"}),
        namespace("energy", 1, {"symprec": 0.1, "library": "2.7"}),
    }
    assert len(others | {first}) == 4


def test_the_hash_sees_every_part_of_a_crystal_and_not_how_it_lies_in_memory(rocksalt: CrystalArrays) -> None:
    numbers, coords, lattice = astuple(rocksalt)
    first = structure_hash(rocksalt)
    assert first == structure_hash(
        CrystalArrays(numbers.astype(np.int32), np.asfortranarray(coords), np.asfortranarray(lattice))
    )
    assert first == structure_hash(CrystalArrays(numbers, np.where(coords == 0, -0.0, coords), lattice))
    changed = [
        CrystalArrays(numbers[::-1], coords, lattice),
        CrystalArrays(numbers, np.nextafter(coords, 1), lattice),
        CrystalArrays(numbers, coords, np.nextafter(lattice, 9)),
        CrystalArrays(numbers[:4], coords[:4], lattice),
    ]
    assert len({first, *map(structure_hash, changed)}) == 5


@pytest.mark.parametrize("damage", ["words", "truncated", "flipped", "no json"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = filled(tmp_path)
    content = bytearray(store.path.read_bytes())
    if damage == "words":
        store.path.write_bytes(b"this is no database at all " * 100)
    elif damage == "truncated":
        store.path.write_bytes(content[: len(content) // 2 + 100])
    elif damage == "flipped":
        content[100:8192] = bytes(len(content[100:8192]))
        store.path.write_bytes(content)
    else:
        with sqlite3.connect(store.path) as database:
            database.execute("UPDATE results SET value = '{torn'")
    with caplog.at_level(logging.WARNING):
        assert store.get_many([f"{i:064x}" for i in range(2000)]) == {}
        store.put_many({"a": 1})
        assert store.get_many(["a"]) == {"a": 1}
    assert "is damaged" in caplog.text
    assert len(list(tmp_path.glob("*.broken-*"))) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ResultStore.open("metric-v1", tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        store.put_many({"a": 1})
        assert store.get_many(["a"]) == {}
    assert "cannot be kept" in caplog.text


WRITER = """
import sys
from latentite.evaluation.store import ResultStore
store = ResultStore.open("metric-v1", sys.argv[1])
print("ready", flush=True)
for batch in range(int(sys.argv[3])):
    store.put_many({f"{sys.argv[2]}-{batch}-{i}": batch for i in range(100)})
"""


def start_writer(directory: Path, name: str, batches: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), name, str(batches)], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, name, 20) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    hashes = [f"{name}-{batch}-{i}" for name in "ab" for batch in range(20) for i in range(100)]
    assert len(ResultStore.open("metric-v1", tmp_path).get_many(hashes)) == 4000


def test_a_kill_loses_whole_batches_only(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, "a", 100_000)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    store = ResultStore.open("metric-v1", tmp_path)
    while not store.get_many(["a-3-0"]):
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with sqlite3.connect(store.path) as database:
        counts = {count for (count,) in database.execute("SELECT COUNT(*) FROM results GROUP BY value")}
    assert counts == {100}
    store.put_many({"after": 1})
    assert store.get_many(["after"]) == {"after": 1}
    assert not list(tmp_path.glob("*.broken-*"))
