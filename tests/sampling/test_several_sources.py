"""Several sources in one evaluation: what was asked stays, every attempt counts, nothing counts twice."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure
from test_run_window import ORIGIN, run
from tiny_checkpoint import fake_draw

import latentite
from latentite import cli
from latentite.evaluation.read import Crystals
from latentite.evaluation.several import read_sources, sources_of
from latentite.sampling.folder import Format
from latentite.sampling.merge import merge
from latentite.sampling.run import run_to_folder
from latentite.sampling.window import shard_range

TOTAL = 128


def part(
    folder: Path, shard: str = "1/1", *, seed: int = 0, total: int = TOTAL, conditions: str = "density=3"
) -> Path:
    """A shard of a run of which a tenth has no usable attempt."""
    number, count = map(int, shard.split("/"))
    first, stop = shard_range(total, number, count, 32)
    what = replace(
        run(fake_draw(share_bad=0.1), total=total),
        first=first,
        stop=stop,
        seed=seed,
        max_attempts=1,
        conditions=lambda ask: conditions,
    )
    settings = {"steps": 5, "seed": seed, "shard": shard, "num_samples": total, "format": ["cif", "extxyz"]}
    run_to_folder(
        what, folder, origin=replace(ORIGIN, settings=settings), formats=[Format.CIF, Format.EXTXYZ]
    )
    return folder


def joined(*paths: Path | str) -> Crystals:
    return read_sources(sources_of(list(paths)), split="test")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("shards")
    return [part(folder / f"part{k}", f"{k}/4") for k in (1, 2, 3, 4)]


def test_parts_of_a_run_keep_what_was_asked_and_count_every_attempt(shards: list[Path]) -> None:
    """Of four folders read as one heap of files, 117 of 128 were counted and the conditions were lost."""
    found = joined(*shards)
    assert found.num_in == TOTAL
    assert 0 < len(found.rejections) < TOTAL
    assert set(found.labels["conditions"]) == {"density=3"}
    assert found.sampling is not None
    assert found.sampling["counts"]["done"] == TOTAL
    assert found.sampling["counts"]["failed"] == len(found.rejections)
    assert found.sampling["settings"]["num_samples"] == TOTAL
    assert [item["folder"] for item in found.sampling["runs"]] == [str(folder) for folder in shards]
    indices = [int(name) for name in found.ids] + [int(item.id) for item in found.rejections]
    assert sorted(indices) == list(range(TOTAL))
    assert all(source.startswith(str(shards[0].parent)) for source in found.sources)


def test_parts_in_any_order_give_what_the_merged_run_gives(shards: list[Path], tmp_path: Path) -> None:
    merge(shards, tmp_path / "merged")
    whole = joined(tmp_path / "merged")
    for order in (shards, shards[::-1]):
        found = joined(*order)
        assert (found.ids, found.content_hash) == (whole.ids, whole.content_hash)
        assert found.labels == whole.labels
        assert [item.id for item in found.rejections] == [item.id for item in whole.rejections]


def test_the_command_and_python_take_several_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, total = tmp_path / "report", 40
    shards = [part(tmp_path / f"part{k}", f"{k}/2", total=total) for k in (1, 2)]
    words = ["evaluate", *map(str, shards), "--out", str(out), "--workers", "1"]
    assert cli.main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    content = json.loads((out / "summary.json").read_text())
    assert (content["num_in"], content["num_scored"] + content["num_failed"]) == (total, total)
    assert 0 < content["num_failed"] < total
    assert f"{total} in = {content['num_scored']} scored + {content['num_failed']} failed" in shown
    assert content["conditions"]["measured"]["density"]["strict"]["denominator"] == content["num_scored"]
    assert content["conditions"]["without_structure"] == content["num_failed"]
    assert content["sampling"]["counts"]["done"] == total
    assert len(content["sampling"]["runs"]) == 2
    failed = (out / "failed.csv").read_text()
    assert f"{shards[0]}/rejected.csv" in failed
    result = latentite.evaluate(shards, workers=1)  # type: ignore[operator]  # a module that can be called
    assert result.rates["readable"].denominator == total
    assert cli.main([*words, "--resume"]) == 0


def test_runs_of_other_requests_and_plain_files_stand_beside_each_other(
    shards: list[Path], tmp_path: Path
) -> None:
    other = part(tmp_path / "other", seed=1, total=20, conditions="density=5")
    salt = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    salt.to(filename=str(tmp_path / "0.cif"))
    found = joined(shards[0], other, tmp_path / "0.cif")
    assert found.num_in == 32 + 20 + 1
    assert len(set(found.ids)) == len(found.ids)
    conditions = found.labels["conditions"]
    assert {"density=3", "density=5", None} == set(conditions)
    assert conditions[-1] is None
    assert found.sampling is not None
    assert [item["settings"]["seed"] for item in found.sampling["runs"]] == [0, 1]
    assert "settings" not in found.sampling
    assert found.sampling["counts"]["done"] == 32 + 20


def test_a_crystal_of_a_run_cannot_count_twice(shards: list[Path], tmp_path: Path) -> None:
    """Copies make rates of uniqueness fall, and everything else look better founded than it is."""
    with pytest.raises(ValueError, match=r"SOURCE must be given once each, got .*part1 twice"):
        joined(shards[0], shards[1], shards[0])
    merge(shards, tmp_path / "merged")
    with pytest.raises(ValueError, match="parts of one run that both hold the indices 32 to 63"):
        joined(shards[1], tmp_path / "merged")
    longer = part(tmp_path / "longer", total=TOTAL + 10)  # the same seed: its first crystals are the same
    with pytest.raises(ValueError, match="both hold the indices 0 to 127"):
        joined(tmp_path / "merged", longer)
    copied = shutil.copytree(shards[0], tmp_path / "copied")
    with pytest.raises(ValueError, match="both hold the indices 0 to 31"):
        joined(shards[0], copied)


def test_a_folder_that_holds_the_folders_of_runs_is_refused(shards: list[Path]) -> None:
    """It was read as a heap of CIFs and frames, each crystal twice and nothing of what was asked."""
    with pytest.raises(
        ValueError, match=r"holds the folders of runs \(part1, part2, part3, \.\.\.\); give each, such"
    ):
        joined(shards[0].parent)


def test_a_damaged_manifest_does_not_make_a_run_a_heap_of_files(shards: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards[0], tmp_path / "out"))
    (folder / "manifest.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"manifest\.json must be the manifest of the run in its folder, and is dam"
    ):
        joined(folder)


def test_a_run_that_is_not_finished_is_said_to_be(
    shards: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(shards[0], tmp_path / "out"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "interrupted"'))
    with caplog.at_level(logging.WARNING):
        joined(folder)
    assert "the run is interrupted, and 32 of its 32 crystals count so far" in caplog.text


def test_what_is_no_list_of_sources_is_refused(shards: list[Path]) -> None:
    salt = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert sources_of([salt, salt]) == ([salt, salt],)
    for given, words in (([], "an empty list"), ([shards[0], salt], "a list of both")):
        with pytest.raises(ValueError, match=f"SOURCE must be paths and names, or structures, got {words}"):
            sources_of(given)
    with pytest.raises(FileNotFoundError, match="SOURCE must be a path that exists"):
        sources_of([shards[0], shards[0] / "none"])
