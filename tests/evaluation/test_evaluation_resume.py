"""An interrupted evaluation goes on: the same files, nothing computed twice, and never for another question."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latentite
from latentite import cli
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.evaluation import matching_section, report
from latentite.metrics import symmetry

Make = Callable[[int, int], list[CrystalArrays]]


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(symmetry, "_CHUNK", 4)
    # Pictures take nearly all of the time of these tests.
    monkeypatch.setattr(report, "make_page", lambda result, summary, seed: "page")


@pytest.fixture
def samples(planted: Make) -> CrystalBatch:
    """14 crystals, of which two are copies."""
    return CrystalBatch.from_arrays(planted(12, 2))


@pytest.fixture
def known(planted: Make) -> CrystalBatch:
    """Three of them, which are known."""
    return CrystalBatch.from_arrays(planted(3, 0))


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Takes the name of every slow piece of work: `symmetry` per structure, `match` per run."""
    calls: list[str] = []
    search, match = symmetry._symmetry, matching_section.find_matches

    def counted_search(*arrays: object, **options: object) -> object:
        calls.append("symmetry")
        return search(*arrays, **options)  # type: ignore[arg-type]  # passed on as they are

    def counted_match(*arrays: object, **options: object) -> object:
        calls.append("match")
        return match(*arrays, **options)  # type: ignore[arg-type]  # passed on as they are

    monkeypatch.setattr(symmetry, "_symmetry", counted_search)
    monkeypatch.setattr(matching_section, "find_matches", counted_match)
    return calls


def stop_in(step: str, after: int) -> Callable[[str, int | None], Callable[[int], None]]:
    """A stage that raises like Ctrl-C once so many structures of a step are done."""

    def stage(text: str, total: int | None) -> Callable[[int], None]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if text == step and done >= after:
                raise KeyboardInterrupt

        return advance

    return stage


def status(folder: Path) -> str:
    return str(json.loads((folder / "evaluation.json").read_text())["status"])


def test_a_resumed_run_gives_the_same_files_and_computes_nothing_again(
    samples: CrystalBatch,
    known: CrystalBatch,
    searched: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        latentite.evaluate(samples, reference=known, workers=1, out=out, stage=stop_in("space groups", 8))
    assert status(out) == "interrupted"
    assert searched == ["symmetry"] * 8
    searched.clear()
    latentite.evaluate(samples, reference=known, workers=1, out=out, resume=True)
    assert status(out) == "finished"
    assert searched == ["symmetry"] * (6 + 3) + ["match"]  # the other six, and the reference
    searched.clear()
    latentite.evaluate(samples, reference=known, workers=1, out=out, resume=True)
    assert searched == []
    monkeypatch.setenv("LATENTITE_CACHE_DIR", str(tmp_path / "another cache"))
    latentite.evaluate(samples, reference=known, workers=1, out=tmp_path / "whole")
    assert searched == ["symmetry"] * (14 + 3) + ["match"]
    for name in ("structures.csv", "failed.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    ours, theirs = (
        {
            key: value
            for key, value in json.loads((folder / "summary.json").read_text()).items()
            if key != "seconds"
        }
        for folder in (out, tmp_path / "whole")
    )
    assert ours == theirs


SCRIPT = """
import os, signal, sys
from pathlib import Path
from latentite.evaluation.run import evaluate
from latentite.metrics import symmetry

symmetry._CHUNK = 2

def stage(text, total):
    done = []
    def advance(count):
        done.append(count)
        if text == "space groups" and len(done) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return advance

evaluate(sys.argv[1], workers=1, out=sys.argv[2], stage=stage)
"""


def test_a_killed_run_goes_on_from_its_last_chunk(
    samples: CrystalBatch, searched: list[str], tmp_path: Path
) -> None:
    folder, out = tmp_path / "cifs", tmp_path / "out"
    folder.mkdir()
    for place, one in enumerate(samples.to_structures()):
        (folder / f"{place:02d}.cif").write_text(one.to(fmt="cif"))
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(out)], env=os.environ, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert status(out) == "running"
    assert not (out / "structures.csv").exists()
    assert cli.main(["evaluate", str(folder), "--out", str(out), "--resume", "--workers", "1"]) == 0
    assert searched.count("symmetry") == 14 - 6
    assert status(out) == "finished"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "cdvae"}, "protocol was 'default', got 'cdvae'"),
        ({"seed": 1}, "seed was 0, got 1"),
        ({"reference": None}, r"reference \(content\) was"),
    ],
)
def test_another_question_is_refused_by_name(
    samples: CrystalBatch, known: CrystalBatch, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    options: dict[str, object] = {"reference": known, "workers": 1, "out": tmp_path / "out"}
    latentite.evaluate(samples, **options)
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        latentite.evaluate(samples, **{**options, **change}, resume=True)
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before


def test_other_structures_are_refused_and_without_resume_replace_the_report(
    samples: CrystalBatch, planted: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    latentite.evaluate(samples, workers=1, out=out)
    fewer = CrystalBatch.from_arrays(planted(5, 0))
    with pytest.raises(ValueError, match=r"source \(content\) was"):
        latentite.evaluate(fewer, workers=1, out=out, resume=True)
    latentite.evaluate(fewer, workers=1, out=out)
    assert json.loads((out / "summary.json").read_text())["num_scored"] == 5


def test_resume_begins_where_nothing_is_and_needs_a_folder(samples: CrystalBatch, tmp_path: Path) -> None:
    latentite.evaluate(samples, workers=1, out=tmp_path / "new", resume=True)
    assert status(tmp_path / "new") == "finished"
    with pytest.raises(ValueError, match="--resume must be given together with --out"):
        latentite.evaluate(samples, workers=1, resume=True)
    (tmp_path / "new" / "evaluation.json").write_text("{torn")
    with pytest.raises(ValueError, match="must be the record of an evaluation"):
        latentite.evaluate(samples, workers=1, out=tmp_path / "new", resume=True)
