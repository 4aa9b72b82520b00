"""The files of a run: what a kill leaves, what a resumed run makes of it, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_run_window import ORIGIN, run, window_of
from tiny_checkpoint import fake_draw

from latentite.generators.jobs import Jobs
from latentite.generators.protocol import Advance, Drawn
from latentite.sampling import folder as folder_module
from latentite.sampling.folder import Counts, Format, RunFolder
from latentite.sampling.manifest import read_commits
from latentite.sampling.run import Run, run_to_folder, samples_of

TOTAL, WINDOW = 300, 64
FORMATS = [Format.CIF, Format.EXTXYZ, Format.JSON]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which holds times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def sample(folder: Path, what: Run | None = None, *, resume: bool = False) -> Counts:
    return run_to_folder(what or run(total=TOTAL), folder, origin=ORIGIN, formats=FORMATS, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    sample(folder)
    return folder


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it by name."""


def stopping(after: int, error: type[BaseException] = Killed) -> Run:
    """A run that ends in the draw after so many."""
    draws = []

    def draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        if len(draws) == after:
            raise error
        draws.append(len(jobs))
        return fake_draw()(jobs, batch_size, advance)

    return run(draw, total=TOTAL)


def test_a_run_leaves_everything_in_order_and_counted(whole: Path) -> None:
    with (whole / "samples.csv").open(newline="") as file:
        samples = list(csv.DictReader(file))
    with (whole / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [int(row["index"]) for row in samples] == list(range(TOTAL))
    assert [row["file"] for row in samples] == [f"cifs/{i:06d}.cif" for i in range(TOTAL)]
    assert {path.name for path in (whole / "cifs").iterdir()} == {f"{i:06d}.cif" for i in range(TOTAL)}
    assert sum(int(row["attempts"]) - 1 for row in samples) == len(rejected) > 0
    assert len({row["seed"] for row in samples}) == TOTAL
    places = [(int(row["index"]), int(row["attempt"])) for row in rejected]
    assert places == sorted(places)
    assert (whole / "structures.extxyz").read_text().count("Lattice=") == TOTAL
    lines = (whole / "structures.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(TOTAL))
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["counts"]["written"] == manifest["counts"]["verified"] == TOTAL
    assert manifest["counts"]["replaced"] == {"collapsed_cell": len(rejected)}
    assert [session["first"] for session in manifest["sessions"]] == [0]


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_run_that_was_killed_and_resumed_leaves_the_same_bytes(
    whole: Path, tmp_path: Path, after: int
) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "out", stopping(after))
    assert contents(tmp_path / "out") != contents(whole)
    counts = sample(tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(whole)
    assert counts.written == TOTAL


@pytest.mark.parametrize("call", ["write", "commit"])
def test_a_kill_between_writing_and_committing_leaves_nothing_twice(
    whole: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    original = getattr(RunFolder, call)

    def killed(self: RunFolder, *arguments: object, **options: object) -> None:
        stop = options.get("stop") or arguments[0].stop  # type: ignore[attr-defined]  # a Window
        if call == "write":
            original(self, *arguments, **options)
        if stop == 2 * WINDOW:
            for file in self._files.values():
                file.flush()
            raise Killed
        if call == "commit":
            original(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, call, killed)
        with pytest.raises(Killed):
            sample(folder)
    assert (folder / "cifs" / "000100.cif").exists()
    assert [commit.stop for commit in read_commits(folder / "journal.jsonl")[0]] == [WINDOW]
    (folder / "cifs" / ".000101.cif.tmp").write_text("half of a")
    with (folder / "journal.jsonl").open("a") as file:
        file.write('{"stop": 128, "offs')  # a line that the power cut tore
    sample(folder, resume=True)
    assert contents(folder) == contents(whole)


def test_a_run_that_was_killed_before_its_first_window_begins_afresh(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".manifest.json.12-ab.tmp").write_text("{")
    sample(folder)
    assert contents(folder) == contents(whole)


def test_a_halved_batch_is_remembered_when_the_run_is_resumed(tmp_path: Path) -> None:
    asked: list[int] = []
    kill_at = [14, 1000]  # the first window takes a few draws

    def tight(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        asked.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("out of memory")
        if len(asked) == kill_at[0]:
            raise Killed
        return fake_draw()(jobs, batch_size, advance)

    with pytest.raises(Killed):
        sample(tmp_path / "out", run(tight, total=TOTAL))
    assert asked[:2] == [4, 2]
    asked.clear()
    kill_at.pop(0)
    sample(tmp_path / "out", run(tight, total=TOTAL), resume=True)
    assert set(asked) == {2}


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "out", stopping(5, KeyboardInterrupt))
    assert "the same command with --resume goes on from there" in caplog.text
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert manifest["sessions"][0]["wall_seconds"] > 0


def test_a_finished_run_that_is_resumed_does_nothing_and_says_so(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(whole), (whole / "manifest.json").read_bytes()
    with caplog.at_level("INFO"):
        counts = sample(whole, run(fake_draw(share_bad=1.0), total=TOTAL), resume=True)
    assert "is finished already: nothing to do" in caplog.text
    assert counts.written == TOTAL
    assert (contents(whole), (whole / "manifest.json").read_bytes()) == before


def test_a_folder_that_is_not_new_is_refused_and_left_alone(whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    with pytest.raises(ValueError, match=r"must be a new or empty folder, got .*; add --resume"):
        sample(whole)
    assert contents(whole) == before
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(
            ValueError, match="out must be a new or empty folder, or one of `latentite sample`"
        ):
            sample(tmp_path, resume=resume)
    with pytest.raises(ValueError, match="out must be a folder, got the file"):
        sample(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_other_settings_are_refused_by_name(whole: Path) -> None:
    origin = replace(ORIGIN, settings={"steps": 6})
    with pytest.raises(ValueError, match="steps was 5, got 6"):
        run_to_folder(run(total=TOTAL), whole, origin=origin, formats=FORMATS, resume=True)
    origin = replace(ORIGIN, checkpoint={"file": "y", "sha256": "11" * 32})
    with pytest.raises(ValueError, match=r"needs the checkpoint that the run began with \(sha256 000000"):
        run_to_folder(run(total=TOTAL), whole, origin=origin, formats=FORMATS, resume=True)


def test_a_file_that_was_cut_after_the_run_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "out", stopping(5))
    os.truncate(tmp_path / "out" / "structures.extxyz", 10)
    with pytest.raises(ValueError, match=r"structures\.extxyz must have at least \d+ bytes, .* got 10"):
        sample(tmp_path / "out", resume=True)


def test_only_the_formats_that_were_asked_for_are_written(tmp_path: Path) -> None:
    run_to_folder(run(total=20), tmp_path / "out", origin=ORIGIN, formats=[Format.JSON])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    tables = {"manifest.json", "journal.jsonl", "samples.csv", "rejected.csv", "SHA256SUMS"}
    assert names == {*tables, "structures.jsonl"}


def test_nothing_counts_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the journal comes after every other file was flushed to the disk."""
    order: list[str] = []
    original = os.fsync

    def fsync(number: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        original(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to name open files")
    monkeypatch.setattr(folder_module.os, "fsync", fsync)
    window = window_of(0, 10)
    with RunFolder(tmp_path, FORMATS, total=10, has_deviation=False) as files:
        files.open(0)
        files.write(window, samples_of(run(total=10), window))
        files.commit(stop=10, batch_size=4, counts=Counts())
    assert sorted(order[:10]) == [f"{i:06d}.cif" for i in range(10)]
    files = {"samples.csv", "rejected.csv", "structures.extxyz", "structures.jsonl", "SHA256SUMS"}
    assert set(order[10:-1]) == files
    assert order[-1] == "journal.jsonl"


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def _touch_up(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a CIF that is missing": (
        lambda folder: (folder / "cifs" / "000007.cif").unlink(),
        "000007.cif is missing",
    ),
    "a CIF of which a bit flipped": (
        lambda folder: _touch_up(folder / "cifs" / "000007.cif"),
        "000007.cif was",
    ),
    "a CIF that was cut": (lambda folder: _cut(folder / "cifs" / "000299.cif"), "000299.cif was changed"),
    "a CIF that is another's": (
        lambda folder: shutil.copy(folder / "cifs" / "000001.cif", folder / "cifs" / "000002.cif"),
        "000002.cif was changed",
    ),
    "all CIFs missing": (lambda folder: shutil.rmtree(folder / "cifs"), r"and 299 more\)"),
    "a table that was edited": (lambda folder: _touch_up(folder / "samples.csv"), "samples.csv was changed"),
    "a table that is missing": (
        lambda folder: (folder / "rejected.csv").unlink(),
        "rejected.csv must have at least",
    ),
    "frames that were edited": (
        lambda folder: _touch_up(folder / "structures.extxyz"),
        "structures.extxyz was",
    ),
    "lines that were cut": (
        lambda folder: _cut(folder / "structures.jsonl"),
        "structures.jsonl must have at least",
    ),
    "checksums that were edited": (lambda folder: _touch_up(folder / "SHA256SUMS"), "SHA256SUMS was changed"),
    "a journal that is missing": (
        lambda folder: (folder / "journal.jsonl").unlink(),
        "journal.jsonl must end",
    ),
    "a journal that was cut": (lambda folder: _cut(folder / "journal.jsonl"), "journal.jsonl must end"),
    "a journal that is none": (
        lambda folder: (folder / "journal.jsonl").write_text("x\n"),
        "line 1, must be a line",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_finished_run_whose_files_were_damaged_is_not_called_finished(
    whole: Path, tmp_path: Path, what: str
) -> None:
    """`--resume` said "nothing to do" with exit code 0 beside CIFs that were cut, edited or gone, and sampled
    everything anew where the journal was lost."""
    damage, words = DAMAGE[what]
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    damage(folder)
    before = contents(folder)
    with pytest.raises(ValueError, match=words) as caught:
        sample(folder, resume=True)
    assert "sample into a new folder" in str(caught.value)
    after = contents(folder)
    assert {name: after[name] for name in before} == before


def test_an_unfinished_run_whose_files_were_damaged_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "out", stopping(5))
    _touch_up(tmp_path / "out" / "cifs" / "000003.cif")
    with pytest.raises(ValueError, match=r"000003\.cif was changed after it was written"):
        sample(tmp_path / "out", resume=True)


def test_trajectories_are_under_the_checksums_too(tmp_path: Path) -> None:
    def draw(jobs: Jobs, batch_size: int, advance: Advance) -> Drawn:
        found = fake_draw()(jobs, batch_size, advance)
        return replace(found, trajectory=[found.crystals, found.crystals])

    sample(tmp_path / "out", run(draw, total=20))
    listed = (tmp_path / "out" / "SHA256SUMS").read_text()
    assert listed.count("trajectories/") == listed.count("cifs/") == 20
    _touch_up(tmp_path / "out" / "trajectories" / "000004.extxyz")
    with pytest.raises(ValueError, match=r"trajectories/000004\.extxyz was changed"):
        sample(tmp_path / "out", run(draw, total=20), resume=True)


def test_a_run_of_an_earlier_version_is_not_continued_without_checksums(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(ValueError, match=r"must hold a run of format 2, .* got format 1 of another version"):
        sample(folder, resume=True)
