"""The walk over a source: every row comes back, in order, with its own outcome, whoever asks."""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from latentite.data.build import build_split, read_source
from latentite.data.options import BuildOptions
from latentite.data.readers.records import PayloadKind, Record, Rejection
from latentite.data.readers.rows import CHUNK, Row, pair, read, walk
from latentite.evaluation.read import read_crystals
from latentite.generators.latent.start import read_structures

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "latentite"


def rows(kinds: list[int]) -> Iterator[Record | Rejection]:
    """0: rejected when the source is opened; 1: rejected by the work; 2: accepted."""
    for row, kind in enumerate(kinds):
        if kind == 0:
            yield Rejection(source="s", row=row, id=str(row), reason="opened")
        else:
            yield Record(source="s", row=row, id=str(row), kind=PayloadKind.CIF, payload=kind)


def work(records: list[Record]) -> list[int | str]:
    return ["worked" if record.payload == 1 else record.row for record in records]


def check(kinds: list[int], workers: int) -> None:
    found: list[tuple[int, object]] = []
    counted: list[int] = []
    for chunk, outcomes in walk(rows(kinds), work, workers=workers, on_chunk=counted.append):
        for item in pair(chunk, outcomes):
            if isinstance(item, Rejection):
                found.append((item.row, item.reason))
            else:
                assert item[0].row == item[1]
                found.append((item[0].row, item[1]))
    expected = [("opened", "worked", row)[kind] for row, kind in enumerate(kinds)]
    assert found == list(enumerate(expected))
    assert sum(counted) == len(kinds)


@given(st.lists(st.integers(0, 2), max_size=50))
def test_every_row_comes_back_once_in_order_with_its_own_outcome(kinds: list[int]) -> None:
    check(kinds, workers=1)


@pytest.mark.parametrize("count", [CHUNK - 1, 4 * CHUNK, 9 * CHUNK + 1])
def test_several_processes_pair_rows_as_one_process_does(count: int) -> None:
    kinds = np.random.default_rng(0).integers(0, 3, count).tolist()
    check(kinds, workers=2)


def test_too_many_or_too_few_outcomes_never_pass() -> None:
    chunk = list(rows([2, 0, 2]))
    for outcomes in ([1], [1, 2, 3]):
        with pytest.raises(AssertionError):
            list(pair(chunk, outcomes))


def test_training_evaluation_prediction_and_starts_take_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    cells = [str(CifWriter(Structure(Lattice.cubic(a), ["Cs", "Cl"], [[0] * 3, [0.5] * 3]))) for a in (4, 5)]
    path = tmp_path / "crystals.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "cif", "energy"])
        writer.writerows([["a", cells[0], 1], ["b", "", 2], ["c", "no crystal", 3], ["d", cells[1], 4]])
    rows_read = list(read(path))
    taken = [item.id for item in rows_read if isinstance(item, Row)]
    refused = [item for item in rows_read if isinstance(item, Rejection)]
    assert taken == ["a", "d"]
    assert [item.row for item in refused] == [1, 2]

    built = build_split(path, options=BuildOptions(), use_cache=False, progress=False)
    assert (list(built.dataset.ids), list(built.rejections)) == (taken, refused)
    evaluated = read_crystals(path, split="all")
    assert (list(evaluated.ids), list(evaluated.rejections)) == (taken, refused)
    predicted, rejections = read_source(str(path), split="test", max_atoms=0)
    assert (list(predicted.ids), list(rejections)) == (taken, refused)
    with pytest.raises(ValueError, match=r"b in .*crystals\.csv: no structure"):
        read_structures(path)


def test_nothing_else_opens_or_parses_crystals() -> None:
    """`rows.py` and `source_rows.py` are the doors; the evaluation opens the folders of samples itself.

    Once three places interleaved rejected rows with parsed ones, each in its own words.
    """
    users: dict[str, set[str]] = {"open_records": set(), "parse_many": set(), "pair": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentite.data."):
                for name in users.keys() & {alias.name for alias in node.names}:
                    users[name].add(path.relative_to(PACKAGE).as_posix())
    doors = {"data/readers/rows.py", "data/source_rows.py"}
    assert users["open_records"] == doors | {"evaluation/read.py"}
    assert users["parse_many"] == {"data/pack.py"}
    assert users["pair"] == {"data/source_rows.py"}
