"""The files of a run: written window by window, and after a kill continued as if nothing had happened.

    manifest.json        settings, checkpoint, versions, sessions, counts (`manifest.py`)
    journal.jsonl        one line per finished window: up to which index, how long each file was, counts so far
    samples.csv          one row per structure
    rejected.csv         one row per attempt that could not be used
    structures.extxyz    format extxyz
    structures.jsonl     format json
    cifs/000123.cif      format cif
    trajectories/        with --trajectory
    SHA256SUMS           of every file in the folders, as `sha256sum --check` reads it

A window counts once its line stands in the journal, which is written after everything else is on the disk. What lies
behind the last line is cut off when the run is resumed; what lies before it must be what was written (`manifest.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from latentite.base.files import csv_lines
from latentite.crystal import CrystalBatch
from latentite.sampling.manifest import (
    CHECKSUMS,
    JOURNAL,
    Commit,
    Stream,
    read_commits,
    sum_lines,
    verify,
)
from latentite.sampling.window import Window
from latentite.sampling.writers import Sample, extxyz_frame, file_stem, json_line, sample_frame

if TYPE_CHECKING:
    from hashlib import _Hash

SAMPLES, REJECTED = "samples.csv", "rejected.csv"
CIFS, TRAJECTORIES = "cifs", "trajectories"

_SAMPLE_COLUMNS = ("index", "formula", "num_atoms", "ask", "conditions", "attempts", "file", "seed")
_REJECTED_COLUMNS = ("index", "attempt", "kind", "reason")


class Format(StrEnum):
    """Formats in which structures are written."""

    CIF = "cif"
    EXTXYZ = "extxyz"
    JSON = "json"


_STREAMS: dict[Format, tuple[str, Callable[[Sample], str]]] = {
    Format.EXTXYZ: ("structures.extxyz", sample_frame),
    Format.JSON: ("structures.jsonl", json_line),
}
"""Formats that are one file, and a structure's share of it."""


@dataclass(kw_only=True, slots=True)
class Counts:
    """Numbers of crystals and attempts so far, by what became of them."""

    done: int = 0
    """Crystals that were asked for and are dealt with: written + failed."""
    written: int = 0
    failed: int = 0
    """Crystals without a usable attempt."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Attempts that could not be used, by kind of refusal."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Those of them that a further attempt followed."""
    first_refused: dict[str, int] = field(default_factory=dict)
    """Crystals whose first attempt could not be used, by kind of refusal: what the generator gives by itself."""
    verified: int = 0
    """Written crystals that have what was asked of them, counted from their CIFs."""

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def plus(self, other: Counts) -> Counts:
        """Of two parts of a run."""
        total = Counts()
        for item in fields(self):
            one, two = getattr(self, item.name), getattr(other, item.name)
            if isinstance(one, dict):
                two = {kind: one.get(kind, 0) + two.get(kind, 0) for kind in {**one, **two}}
                one = {}
            setattr(total, item.name, {**one, **two} if isinstance(two, dict) else one + two)
        return total

    def add(self, window: Window) -> None:
        """Count one more window."""
        self.done += window.stop - window.first
        self.written += len(window.jobs)
        self.failed += window.num_failed
        self.verified += int(window.is_verified.sum())
        last = {item.index: item.attempt for item in window.rejected}  # in order: the last attempt stays
        failed = set(last) - set(window.jobs.indices.tolist())
        for item in window.rejected:
            kind = item.refusal.kind.value
            self.rejected[kind] = self.rejected.get(kind, 0) + 1
            if item.attempt == 0:
                self.first_refused[kind] = self.first_refused.get(kind, 0) + 1
            if item.index not in failed or item.attempt < last[item.index]:
                self.replaced[kind] = self.replaced.get(kind, 0) + 1


class RunFolder:
    """A run's files while it is going on; a context manager that one process at a time can hold.

    Args:
        path: the folder, which has a manifest.
        formats: to write.
        total: crystals of the whole run, over all shards.
        has_deviation: whether samples have a `fixed_deviation`.
    """

    def __init__(self, path: Path, formats: Sequence[Format], *, total: int, has_deviation: bool) -> None:
        self.path = path
        self._formats = tuple(formats)
        self._total = total
        self._columns = (*_SAMPLE_COLUMNS, "fixed_deviation") if has_deviation else _SAMPLE_COLUMNS
        self._files: dict[str, Stream] = {}
        self._fresh: list[Path] = []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.file.close()
        self._files.clear()

    def open(self, first: int) -> Commit | None:
        """Open the files at the last commit, cutting off what lies behind it; None when nothing was committed.

        Args:
            first: first index of the run or shard.

        Raises:
            ValueError: when another process is writing here, or what was committed is not what lies here.
        """
        journal = self._open(JOURNAL)
        try:
            fcntl.flock(
                journal.file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system lets go of it with the process
        except OSError as error:
            raise ValueError(f"{self.path} must not be written by another run, but one is running") from error
        commits, length = read_commits(self.path / JOURNAL)
        commit = commits[-1] if commits else None
        digests = {} if commit is None else verify(self.path, commit)
        journal.file.truncate(length)
        for name in (SAMPLES, REJECTED, CHECKSUMS, *(_STREAMS[f][0] for f in self._formats if f in _STREAMS)):
            offset = 0 if commit is None else commit.offsets[name]
            stream = self._open(name, digests.get(name))
            stream.file.truncate(offset)
            if offset == 0:
                stream.write(self._header(name))
        self._remove_files(first if commit is None else commit.stop)
        return commit

    def _open(self, name: str, digest: _Hash | None = None) -> Stream:
        self._files[name] = Stream((self.path / name).open("ab"), digest)
        return self._files[name]

    def _header(self, name: str) -> bytes:
        """The header line of a table; empty for any other file."""
        headers = {SAMPLES: self._columns, REJECTED: _REJECTED_COLUMNS}
        return csv_lines([headers[name]]).encode() if name in headers else b""

    def write(self, window: Window, samples: Sequence[Sample]) -> None:
        """Write a window; it does not count before `commit`."""
        has_cifs = Format.CIF in self._formats
        rows = []
        for sample in samples:
            name = f"{CIFS}/{file_stem(sample.index, self._total)}.cif" if has_cifs else ""
            row = [sample.index, sample.formula, sample.arrays.num_atoms, sample.ask, sample.conditions]
            row += [sample.attempt + 1, name, sample.seed]
            rows.append(row if sample.fixed_deviation is None else [*row, f"{sample.fixed_deviation:.6f}"])
            if has_cifs:
                self._write_file(name, sample.cif.encode())
        self._files[SAMPLES].write(csv_lines(rows).encode())
        refused = ([r.index, r.attempt, r.refusal.kind, r.refusal.reason] for r in window.rejected)
        self._files[REJECTED].write(csv_lines(refused).encode())
        for chosen in self._formats:
            if chosen in _STREAMS:
                name, text = _STREAMS[chosen]
                self._files[name].write("".join(map(text, samples)).encode())
        self._write_trajectories(window.trajectory, samples)

    def copy(self, part: Path, before: Commit | None, commit: Commit) -> None:
        """Write a window that another folder holds, whose files were verified; it does not count before `commit`.

        Args:
            part: a folder of the same run.
            before: the commit there that ends before the window; None when it is the first.
            commit: the one that ends with it.
        """
        for name, stream in self._files.items():
            if name == JOURNAL:
                continue
            start = len(self._header(name)) if before is None else before.offsets[name]
            with (part / name).open("rb") as file:
                file.seek(start)
                content = file.read(commit.offsets[name] - start)
            if name != CHECKSUMS:
                stream.write(content)
                continue
            for path, _ in sum_lines(content.decode()):
                self._write_file(path, (part / path).read_bytes())

    def commit(self, *, stop: int, batch_size: int, counts: Counts) -> None:
        """Make everything that was written so far count."""
        # Several at once: the file system makes one transaction of them, else each waits for its own.
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_to_disk, self._fresh))
        self._fresh.clear()
        offsets, sums = {}, {}
        for name, stream in self._files.items():
            if name != JOURNAL:
                stream.flush()
                os.fsync(stream.file.fileno())
                offsets[name], sums[name] = stream.file.tell(), stream.digest.hexdigest()
        commit = Commit(
            stop=stop, offsets=offsets, batch_size=batch_size, counts=counts.to_plain(), sha256=sums
        )
        journal = self._files[JOURNAL]
        journal.write(f"{json.dumps(asdict(commit))}\n".encode())
        journal.flush()
        os.fsync(journal.file.fileno())

    def _write_file(self, name: str, content: bytes) -> None:
        """A file of its own, by its path in the folder, with its line in `SHA256SUMS`."""
        path = self.path / name
        if not path.parent.is_dir():
            path.parent.mkdir()
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        self._fresh.append(path)
        self._files[CHECKSUMS].write(f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode())

    def _write_trajectories(self, states: Sequence[CrystalBatch], samples: Sequence[Sample]) -> None:
        for sample, frames in zip(samples, zip(*(s.to_arrays() for s in states), strict=True), strict=False):
            text = "".join(extxyz_frame(frame, [("state", n)]) for n, frame in enumerate(frames))
            self._write_file(f"{TRAJECTORIES}/{file_stem(sample.index, self._total)}.extxyz", text.encode())

    def _remove_files(self, stop: int) -> None:
        """Remove what was written after the last commit: files of crystals, and half-written ones."""
        for path in self.path.glob(".*.tmp"):
            path.unlink()
        for folder in (CIFS, TRAJECTORIES):
            for path in (self.path / folder).glob("*"):
                is_temporary = path.name.startswith(".")
                if is_temporary or (path.stem.isdecimal() and int(path.stem) >= stop):
                    path.unlink()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
