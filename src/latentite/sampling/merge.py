"""The folders of a run that was sampled in parts, joined into the folder of the whole run: `latentite sample merge`.

What is joined is what the parts have committed, window by window, so that the files are those of the run without
parts. Nothing is dropped or sampled: gaps, doubles, other requests and damage are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentite.base.files import publishing, write_json
from latentite.sampling.folder import SAMPLES, Counts, Format, RunFolder
from latentite.sampling.manifest import (
    MANIFEST,
    Commit,
    difference,
    finished_commits,
    new_manifest,
    read_manifest,
    refuse_format,
    verify,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A finished folder whose files are what was written."""

    folder: Path
    manifest: dict[str, Any]
    commits: list[Commit]

    @property
    def first(self) -> int:
        return int(self.manifest["range"]["first"])

    @property
    def stop(self) -> int:
        return int(self.manifest["range"]["stop"])

    @property
    def total(self) -> int:
        return int(self.manifest["range"]["total"])


def merge(parts: Sequence[str | Path], out: str | Path) -> Counts:
    """Join the folders of all parts of one run; `out` appears only when it is whole.

    Args:
        parts: folders of `latentite sample --shard`, in any order.
        out: a new or empty folder.

    Returns:
        The counts of the whole run.

    Raises:
        FileNotFoundError: when a part is not there.
        ValueError: when a part is no finished run, damaged, or of another request; when indices are missing or
            there twice; when `out` is not empty.
    """
    folder = Path(out)
    if read_manifest(folder) is not None:
        raise ValueError(f"out must be a new or empty folder, got {folder}, which holds a run")
    opened = sorted((_open(Path(part)) for part in parts), key=lambda part: (part.first, part.stop))
    for part in opened[1:]:
        _refuse_other(opened[0], part)
    _refuse_gaps(opened)
    for part in opened:
        if part.commits:
            verify(part.folder, part.commits[-1])
    manifest = _joined(opened)
    with publishing(folder) as temporary:
        counts = _copy(opened, temporary)
        manifest["counts"] = counts.to_plain()
        write_json(temporary / MANIFEST, manifest)
    if read_manifest(folder) != manifest:
        raise ValueError(f"out must not be written by others meanwhile, but {folder} was; give another --out")
    return counts


def _open(folder: Path) -> _Part:
    if not folder.is_dir():
        raise FileNotFoundError(f"a part must be a folder of `latentite sample`, got {folder}: there is none")
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"a part must be a folder of `latentite sample`, got {folder}, which is empty")
    refuse_format(folder, manifest)
    if manifest["status"] != "finished":
        raise ValueError(
            f"every part must be finished, got {folder}, which is {manifest['status']}; go on with it by its own "
            "command with --resume"
        )
    return _Part(folder=folder, manifest=manifest, commits=finished_commits(folder, manifest))


def _refuse_other(first: _Part, other: _Part) -> None:
    """Refuse a part of another request."""
    differing = difference(first.manifest, other.manifest, without=("shard",))
    if differing is not None:
        name, one, two = differing
        raise ValueError(
            f"parts must be of one run, with the same checkpoint and settings, but {name} is {one} in "
            f"{first.folder} and {two} in {other.folder}; leave one out"
        )


def _refuse_gaps(parts: Sequence[_Part]) -> None:
    """Refuse indices that are in no part, or in two."""
    for before, after in pairwise(parts):
        if after.first < before.stop:
            raise ValueError(
                f"every index must be in one part, but {after.first} to {min(before.stop, after.stop) - 1} are in "
                f"{before.folder} and in {after.folder}; leave one of them out"
            )
    ends = [0, *(part.stop for part in parts)]
    begins = [*(part.first for part in parts), parts[0].total]
    gaps = [f"{end} to {first - 1}" for end, first in zip(ends, begins, strict=True) if end < first]
    if gaps:
        shards = ", ".join(part.manifest["settings"]["shard"] for part in parts)
        raise ValueError(
            f"every index of the run must be in a part, but {' and '.join(gaps)} of {parts[0].total} are in none "
            f"(shards {shards} are given); add the folders of the others"
        )


def _joined(parts: Sequence[_Part]) -> dict[str, Any]:
    """The manifest of the whole run, which keeps where its parts came from; still without counts."""
    first = parts[0].manifest
    settings = {**first["settings"], "shard": "1/1"}
    total = parts[0].total
    manifest = new_manifest(settings, first["checkpoint"], first=0, stop=total, total=total)
    kept = ("range", "counts", "checkpoint")
    return {
        **manifest,
        "status": "finished",
        "sessions": [session for part in parts for session in part.manifest["sessions"]],
        "parts": [
            {
                "folder": str(part.folder),
                "shard": part.manifest["settings"]["shard"],
                **{name: part.manifest[name] for name in kept},
                "sha256": part.commits[-1].sha256 if part.commits else {},
            }
            for part in parts
        ],
    }


def _copy(parts: Sequence[_Part], out: Path) -> Counts:
    """All windows of all parts, in the order of the index."""
    formats = [Format(name) for name in parts[0].manifest["settings"]["format"]]
    with (parts[0].folder / SAMPLES).open(encoding="utf-8") as file:
        has_deviation = "fixed_deviation" in file.readline().rstrip("\n").split(",")
    done = counts = Counts()
    with RunFolder(out, formats, total=parts[0].total, has_deviation=has_deviation) as files:
        files.open(0)
        for part in parts:
            before = None
            for commit in part.commits:
                files.copy(part.folder, before, commit)
                counts = done.plus(Counts(**commit.counts))
                files.commit(stop=commit.stop, batch_size=commit.batch_size, counts=counts)
                before = commit
            done = counts
    return counts
