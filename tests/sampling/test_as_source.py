"""Folders of a sampling run as a source of `latentite evaluate`: that run's structures, and nothing else."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_run_window import ORIGIN, run
from tiny_checkpoint import fake_draw

from latentite.evaluation.read import Crystals, read_crystals
from latentite.sampling.folder import Format
from latentite.sampling.manifest import JOURNAL
from latentite.sampling.run import Run, run_to_folder

TOTAL = 40


def sampled(folder: Path, *formats: Format, what: Run | None = None) -> Path:
    run_to_folder(what or run(total=TOTAL), folder, origin=ORIGIN, formats=formats)
    return folder


def crystals_of(folder: Path) -> Crystals:
    return read_crystals(folder, split="test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in every format."""
    return sampled(tmp_path_factory.mktemp("whole") / "out", *Format)


def test_every_format_gives_the_same_crystals_with_the_index_as_id(whole: Path, tmp_path: Path) -> None:
    first = crystals_of(whole)
    assert first.ids == tuple(str(index) for index in range(TOTAL))
    assert first.sources[3] == "cifs/000003.cif"
    assert first.rejections == ()
    assert first.sampling is not None
    assert first.sampling["counts"]["written"] == TOTAL
    for form in (Format.EXTXYZ, Format.JSON):
        other = crystals_of(sampled(tmp_path / form, form))
        assert other.ids == first.ids
        for ours, theirs in zip(first.arrays, other.arrays, strict=True):
            assert ours.atomic_numbers.tolist() == theirs.atomic_numbers.tolist()
            difference = ours.frac_coords - theirs.frac_coords
            assert np.abs(difference - np.round(difference)).max() < 1e-6


def test_what_was_asked_of_each_stays_with_it(whole: Path, tmp_path: Path) -> None:
    told = replace(run(total=TOTAL), conditions=lambda ask: "band_gap=2.0")
    found = crystals_of(sampled(tmp_path / "out", Format.CIF, what=told))
    assert found.labels["conditions"] == ("band_gap=2.0",) * TOTAL
    with (tmp_path / "out" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert found.labels["attempts"] == tuple(float(row["attempts"]) for row in rows)
    assert crystals_of(whole).labels["conditions"] == (None,) * TOTAL


def test_crystals_without_a_usable_attempt_count_as_failed(tmp_path: Path) -> None:
    what = replace(run(fake_draw(share_bad=0.5), total=TOTAL), max_attempts=1)
    found = crystals_of(sampled(tmp_path / "out", Format.CIF, what=what))
    assert found.num_in == TOTAL
    assert 0 < len(found.rejections) < TOTAL
    assert {int(item.id) for item in found.rejections}.isdisjoint(map(int, found.ids))
    assert all(item.reason.startswith("no usable attempt: ") for item in found.rejections)
    assert found.sampling is not None
    assert found.sampling["counts"]["failed"] == len(found.rejections)


def test_files_of_another_run_and_uncommitted_ones_do_not_count(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "cifs" / "000000.cif", folder / "cifs" / "999999.cif")
    (folder / "trajectories").mkdir()
    shutil.copy(folder / "cifs" / "000000.cif", folder / "trajectories" / "000000.cif")
    with (folder / "samples.csv").open("a") as file:
        file.write("40,Fe,1,,,1,cifs/000040.cif,7\n41,F")  # a kill before the commit
    assert crystals_of(folder).content_hash == crystals_of(whole).content_hash
    (folder / JOURNAL).write_text("")
    assert crystals_of(folder).num_in == 0


def test_a_structure_that_was_deleted_is_a_failure(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    (folder / "cifs" / "000007.cif").unlink()
    found = crystals_of(folder)
    assert found.num_in == TOTAL
    assert [(item.id, item.source) for item in found.rejections] == [("7", "cifs/000007.cif")]
    stream = tmp_path / "stream"
    sampled(stream, Format.JSON)
    lines = (stream / "structures.jsonl").read_text().splitlines(keepends=True)
    (stream / "structures.jsonl").write_text("".join(lines[:-2]))
    assert [item.id for item in crystals_of(stream).rejections] == ["38", "39"]
    (stream / "structures.jsonl").unlink()
    with pytest.raises(ValueError, match=r"must hold the run's structures\.extxyz or structures\.jsonl"):
        crystals_of(stream)


def test_a_structure_or_a_table_that_was_edited_is_not_taken_for_the_runs_own(
    whole: Path, tmp_path: Path
) -> None:
    """What was asked of the model stood beside a crystal that it never made."""
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    shutil.copy(folder / "cifs" / "000001.cif", folder / "cifs" / "000007.cif")
    found = crystals_of(folder)
    assert found.num_in == TOTAL
    assert [(item.id, item.source) for item in found.rejections] == [("7", "cifs/000007.cif")]
    assert "was changed after it was sampled" in found.rejections[0].reason
    table = folder / "samples.csv"
    table.write_text(table.read_text().replace(",,", ",,x", 1))
    with pytest.raises(ValueError, match=r"samples\.csv must be what the run wrote, and was changed"):
        crystals_of(folder)


def test_a_zip_of_the_folder_gives_its_structures(whole: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        for path in sorted(whole.rglob("*")):
            archive.write(path, path.relative_to(whole))
    found = crystals_of(tmp_path / "out.zip")
    assert len(found) == TOTAL
    assert sorted(found.hashes) == sorted(crystals_of(whole).hashes)


@pytest.mark.parametrize("content", ['{"name": "my samples"}', "[1, 2]", "{torn", ""])
def test_other_folders_may_have_a_manifest_of_their_own(whole: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(whole / "cifs", folder)
    (folder / "manifest.json").write_text(content)
    (folder / "notes.json").write_text(json.dumps({"temperature": 300}))
    found = crystals_of(folder)
    assert len(found) == TOTAL
    assert found.sampling is None
