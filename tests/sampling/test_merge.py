"""Shards joined into the run, runs extended: the same files as if it had been asked so at once, or a refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_run_folder import contents
from test_run_window import ORIGIN, run
from tiny_checkpoint import fake_draw, write_checkpoint
from tiny_ldm import ALL_CONDITIONS

from latentite import cli
from latentite.generation import generate
from latentite.sampling import window
from latentite.sampling.folder import Counts, Format
from latentite.sampling.merge import merge
from latentite.sampling.run import Origin, Run, run_to_folder
from latentite.sampling.window import shard_range

TOTAL, WINDOW = 300, 64
FORMATS = [Format.CIF, Format.EXTXYZ, Format.JSON]


def origin(shard: str = "1/1", num_samples: int = TOTAL, **settings: object) -> Origin:
    return replace(
        ORIGIN,
        settings={
            **ORIGIN.settings,
            "shard": shard,
            "num_samples": num_samples,
            "format": [item.value for item in FORMATS],
            **settings,
        },
    )


def part(folder: Path, shard: str, *, what: Run | None = None, **settings: object) -> Path:
    number, count = map(int, shard.split("/"))
    first, stop = shard_range(TOTAL, number, count, WINDOW)
    chosen = replace(
        what or run(fake_draw(share_bad=0.4), total=TOTAL), first=first, stop=stop, max_attempts=2
    )
    run_to_folder(chosen, folder, origin=origin(shard, **settings), formats=FORMATS)
    return folder


def whole_run(folder: Path, total: int, *, resume: bool = False, **settings: object) -> Counts:
    what = replace(run(fake_draw(share_bad=0.4), total=total), max_attempts=2)
    return run_to_folder(
        what, folder, origin=origin(num_samples=total, **settings), formats=FORMATS, resume=resume
    )


def manifest_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = manifest_of(folder)
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never cut, some of whose crystals failed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    counts = whole_run(folder, TOTAL)
    assert counts.failed > 0
    assert counts.replaced
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same run in three parts."""
    folder = tmp_path_factory.mktemp("shards")
    return [part(folder / f"part{k}", f"{k}/3") for k in (1, 2, 3)]


@pytest.fixture
def copies(shards: list[Path], tmp_path: Path) -> list[Path]:
    """The parts, to be damaged."""
    return [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in shards]


def test_merged_shards_are_byte_for_byte_the_run_without_shards(
    whole: Path, shards: list[Path], tmp_path: Path
) -> None:
    counts = merge([shards[2], shards[0], shards[1]], tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)
    ours, theirs = manifest_of(tmp_path / "out"), manifest_of(whole)
    assert ours["counts"] == theirs["counts"] == counts.to_plain()
    for name in ("format", "status", "settings", "checkpoint", "range"):
        assert ours[name] == theirs[name]
    assert [item["shard"] for item in ours["parts"]] == ["1/3", "2/3", "3/3"]
    assert sum(item["counts"]["done"] for item in ours["parts"]) == counts.done == TOTAL
    assert counts.written + counts.failed == TOTAL
    assert len(ours["sessions"]) == 3


def test_the_checksums_of_a_merged_folder_are_those_that_sha256sum_finds(
    shards: list[Path], tmp_path: Path
) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    merge(shards, tmp_path / "out")
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path / "out", check=False).returncode == 0
    listed = {line.split()[1] for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()}
    assert listed == {f"cifs/{path.name}" for path in (tmp_path / "out" / "cifs").iterdir()}


def test_a_merged_folder_is_resumed_as_finished_and_can_be_extended(
    whole: Path, shards: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    merge(shards, out)
    assert whole_run(out, TOTAL, resume=True).done == TOTAL
    assert contents(out) == contents(whole)
    assert whole_run(out, TOTAL + 50, resume=True).done == TOTAL + 50
    assert len(manifest_of(out)["parts"]) == 3


def test_gaps_and_doubles_in_the_indices_are_refused(shards: list[Path], tmp_path: Path) -> None:
    first = shard_range(TOTAL, 2, 3, WINDOW)
    for given, words in (
        ([shards[0], shards[2]], f"{first[0]} to {first[1] - 1} of 300 are in none"),
        (shards[:2], f"{first[1]} to 299 of 300 are in none"),
        (shards[1:], f"but 0 to {first[0] - 1} of 300 are in none"),
        ([*shards, shards[1]], f"{first[0]} to {first[1] - 1} are in .*part2 and in .*part2"),
    ):
        with pytest.raises(ValueError, match=words):
            merge(given, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["settings"].update(seed=1), "seed is"),
        (lambda m: m["settings"].update(steps=7), "steps is 5 in .*part1 and 7 in .*part2"),
        (lambda m: m["settings"].update(num_samples=400), "num_samples is 300"),
        (lambda m: m["settings"].update(conditions="band_gap=2"), "conditions is None"),
        (lambda m: m["checkpoint"].update(sha256="11" * 32), "checkpoint is 0000"),
        (lambda m: m.update(status="interrupted"), "must be finished, got .*part2, which is interrupted"),
        (lambda m: m.update(status="running"), "must be finished, got .*part2, which is running"),
        (lambda m: m.update(format=1), "must hold a run of format 2"),
        (lambda m: m["counts"].update(written=3), "with the same counts"),
    ],
)
def test_parts_of_another_request_and_unfinished_parts_are_refused(
    copies: list[Path], tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    change_manifest(copies[1], change)
    with pytest.raises(ValueError, match=words):
        merge(copies, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def _edit(folder: Path) -> None:
    path = sorted((folder / "cifs").iterdir())[3]
    path.write_text(path.read_text().replace("0.", "1.", 1))


def _drop_journal_line(folder: Path) -> None:
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[:-1]))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (_edit, r"\.cif was changed after it was written"),
    (lambda folder: sorted((folder / "cifs").iterdir())[0].unlink(), r"\.cif is missing"),
    (
        lambda folder: (folder / "structures.extxyz").unlink(),
        r"structures\.extxyz must have at least \d+ bytes",
    ),
    (lambda folder: (folder / "rejected.csv").write_text("index\n" * 999), r"rejected\.csv was changed"),
    (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS must have at least"),
    (_drop_journal_line, r"journal\.jsonl must end where manifest\.json says"),
    (
        lambda folder: (folder / "journal.jsonl").unlink(),
        r"journal\.jsonl must end where manifest\.json says",
    ),
    (lambda folder: (folder / "journal.jsonl").write_text("{}\n"), r"journal\.jsonl, line 1, must be a line"),
    (lambda folder: (folder / "manifest.json").write_text("{"), r"must be the manifest of a sampling run"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_damaged_part_is_refused_and_its_file_named(
    copies: list[Path], tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(copies[2])
    with pytest.raises(ValueError, match=words):
        merge(copies, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_part_has_beside_its_run_stays_behind(copies: list[Path], whole: Path, tmp_path: Path) -> None:
    (copies[0] / "cifs" / "000007.notes").write_text("mine")
    (copies[0] / "cifs" / "999999.cif").write_text("of another run")
    with (copies[1] / "samples.csv").open("a") as file:
        file.write("torn by a ki")
    merge(copies, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_paths_in_the_checksums_of_a_part_lead_nowhere_else(copies: list[Path], tmp_path: Path) -> None:
    """A folder may come from anyone: its list of files must not be able to name others."""
    import hashlib

    from latentite.sampling.manifest import read_commits

    line = f"{'0' * 64}  ../../../etc/passwd\n".encode()
    (copies[0] / "SHA256SUMS").write_bytes(line)
    commits, _ = read_commits(copies[0] / "journal.jsonl")
    last = commits[-1]
    last.offsets["SHA256SUMS"], last.sha256["SHA256SUMS"] = len(line), hashlib.sha256(line).hexdigest()
    text = {name: getattr(last, name) for name in ("stop", "offsets", "batch_size", "counts", "sha256")}
    (copies[0] / "journal.jsonl").write_text(json.dumps(text) + "\n")
    with pytest.raises(ValueError, match="SHA256SUMS must have lines such as"):
        merge(copies, tmp_path / "out")


def test_a_folder_that_is_not_empty_and_what_is_no_run_are_refused(
    shards: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"out must be a new or empty folder, got .*part1, which holds a run"
    ):
        merge(shards, shards[0])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        merge(shards, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a part must be a folder of `latentite sample`, got .*none"):
        merge([*shards, tmp_path / "none"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="which is empty"):
        merge([*shards, tmp_path / "empty"], tmp_path / "out")
    merge(shards, tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").is_file()


def test_more_shards_than_crystals_are_merged(tmp_path: Path) -> None:
    for number in range(1, 6):
        first, stop = shard_range(3, number, 5, WINDOW)
        what = replace(run(total=3), first=first, stop=stop)
        run_to_folder(what, tmp_path / str(number), origin=origin(f"{number}/5", 3), formats=FORMATS)
    counts = merge([tmp_path / str(number) for number in range(1, 6)], tmp_path / "out")
    assert counts.written == 3


def test_a_run_that_is_extended_is_the_run_that_was_asked_for_at_once(tmp_path: Path) -> None:
    """Of the last window, which was cut short, only the missing crystals are made; all others are whole windows."""
    at_once, grown = tmp_path / "at_once", tmp_path / "grown"
    whole_run(at_once, 300)
    drawn: list[int] = []
    for total in (100, 128, 300):
        draw = fake_draw(share_bad=0.4, seen=lambda jobs, size, found: drawn.extend(jobs.indices.tolist()))
        what = replace(run(draw, total=total), max_attempts=2)
        drawn.clear()
        run_to_folder(what, grown, origin=origin(num_samples=total), formats=FORMATS, resume=grown.exists())
        assert sorted(set(drawn)) == list(range({100: 0, 128: 100, 300: 128}[total], total))
    ours, theirs = contents(grown), contents(at_once)
    assert ours.pop("journal.jsonl") != theirs.pop("journal.jsonl")  # it has one more line, at 100
    assert ours == theirs
    assert manifest_of(grown)["settings"] == manifest_of(at_once)["settings"]
    assert manifest_of(grown)["range"] == manifest_of(at_once)["range"]
    assert manifest_of(grown)["counts"] == manifest_of(at_once)["counts"]
    assert [session["first"] for session in manifest_of(grown)["sessions"]] == [0, 100, 128]


def test_a_run_that_cannot_be_extended_says_why_and_what_to_do(whole: Path, shards: list[Path]) -> None:
    before = contents(whole), (whole / "manifest.json").read_bytes()
    with pytest.raises(
        ValueError, match=r"num_samples must be at least that of the run .*: was 300, got 200"
    ):
        whole_run(whole, 200, resume=True)
    what = replace(run(total=400), first=0, stop=128)
    with pytest.raises(ValueError, match=r"num_samples of a shard cannot change.*merge"):
        run_to_folder(what, shards[0], origin=origin("1/3", 400), formats=FORMATS, resume=True)
    with pytest.raises(ValueError, match=r"names in .* have digits for: was 300, got 2000000"):
        run_to_folder(
            run(total=2_000_000), whole, origin=origin(num_samples=2_000_000), formats=FORMATS, resume=True
        )
    with pytest.raises(ValueError, match="steps was 5, got 6"):
        whole_run(whole, 400, resume=True, steps=6)
    assert (contents(whole), (whole / "manifest.json").read_bytes()) == before


def test_a_run_that_is_killed_while_it_is_extended_goes_on(tmp_path: Path) -> None:
    whole_run(tmp_path / "out", 128)
    draws: list[int] = []

    def killed(*arguments: Any) -> Any:
        draws.append(1)
        if len(draws) == 3:
            raise KeyboardInterrupt
        return fake_draw(share_bad=0.4)(*arguments)

    what = replace(run(killed, total=300), max_attempts=2)
    with pytest.raises(KeyboardInterrupt):
        run_to_folder(what, tmp_path / "out", origin=origin(), formats=FORMATS, resume=True)
    assert manifest_of(tmp_path / "out")["status"] == "interrupted"
    assert whole_run(tmp_path / "out", 300, resume=True).done == 300
    whole_run(tmp_path / "at_once", 300)
    assert contents(tmp_path / "out") == contents(tmp_path / "at_once")


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("cond") / "last.ckpt", conditions=ALL_CONDITIONS)


def test_commands_shard_merge_and_extend(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python src/sample.py merge` is this too: it hands `sample` and its words to the same `main`."""
    monkeypatch.setattr(window, "_LEAST", 16)  # crystals of a window, and so of a shard
    options = f"--ckpt {ckpt} --steps 2 --batch-size 4 --conditions band_gap=2".split()
    parts = [str(tmp_path / f"part{k}") for k in (1, 2, 3)]
    for number, folder in enumerate(parts, start=1):
        shard = ["--shard", f"{number}/3", "--resume", "--out", folder]
        assert cli.main(["sample", *options, "--num-samples", "48", *shard]) == 0
    capsys.readouterr()
    assert cli.main(["sample", "merge", *parts, "--out", str(tmp_path / "merged")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("asked 48, written 48, ")
    assert lines[1] == f"structures in {tmp_path / 'merged'}"
    assert cli.main(["sample", *options, "--num-samples", "48", "--out", str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    for folder in ("merged", "whole"):
        extended = ["--num-samples", "64", "--resume", "--out", str(tmp_path / folder)]
        assert cli.main(["sample", *options, *extended]) == 0
    assert cli.main(["sample", *options, "--num-samples", "64", "--out", str(tmp_path / "at_once")]) == 0
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole") == contents(tmp_path / "at_once")
    capsys.readouterr()
    assert cli.main(["sample", "merge", *parts[:2], "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.startswith("error: every index of the run must be in a part, but 32 to 47")


def test_more_of_each_formula_cannot_be_had_by_extending(ckpt: Path, tmp_path: Path) -> None:
    """With two formulas index 10 is the last of the first or of the second, as the number of samples says."""
    options = {"steps": 2, "formula": ["NaCl", "Li2O"], "formula_units": 1, "out": tmp_path}
    generate(ckpt, num_samples=5, **options)
    with pytest.raises(ValueError, match=r"cannot change in a run of several formulas .*: was 5, got 8"):
        generate(ckpt, num_samples=8, resume=True, **options)
    one = {**options, "formula": "NaCl", "out": tmp_path / "one"}
    generate(ckpt, num_samples=5, **one)
    assert generate(ckpt, num_samples=8, resume=True, **one).counts.written == 8
