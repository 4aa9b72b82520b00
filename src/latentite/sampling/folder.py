"""The files of a run: written window by window, and after a kill continued as if nothing had happened.

    manifest.json        settings, checkpoint, versions, sessions, counts (`manifest.py`)
    journal.jsonl        one line per finished window: up to which index, how long each file was, counts so far
    samples.csv          one row per structure
    rejected.csv         one row per attempt that could not be used
    structures.extxyz    format extxyz
    structures.jsonl     format json
    cifs/000123.cif      format cif
    trajectories/        with --trajectory

A window counts once its line stands in the journal, which is written after everything else is on the disk. What
lies behind the last line is cut off when the run is resumed. Comes after `window.py`; `run.py` fills it.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from latentite.crystal import CrystalBatch
from latentite.sampling.window import Window
from latentite.sampling.writers import Sample, extxyz_frame, file_stem, json_line, sample_frame

MANIFEST, JOURNAL = "manifest.json", "journal.jsonl"
SAMPLES, REJECTED = "samples.csv", "rejected.csv"
CIFS, TRAJECTORIES = "cifs", "trajectories"

_SAMPLE_COLUMNS = ("index", "formula", "num_atoms", "ask", "conditions", "attempts", "file", "seed")
_REJECTED_COLUMNS = ("index", "attempt", "kind", "reason")


class Format(StrEnum):
    """How structures are written."""

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
    """What became of the crystals so far."""

    done: int = 0
    """Crystals that were asked for and are dealt with: written + failed."""
    written: int = 0
    failed: int = 0
    """Crystals without a usable attempt."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Attempts that could not be used, by kind of refusal."""
    replaced: dict[str, int] = field(default_factory=dict)
    """Those of them that a further attempt followed."""
    verified: int = 0
    """Written crystals that have what was asked of them, counted from their CIFs."""

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

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
            if item.index not in failed or item.attempt < last[item.index]:
                self.replaced[kind] = self.replaced.get(kind, 0) + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """A line of the journal: the run up to the index `stop`."""

    stop: int
    offsets: dict[str, int]
    """Length in bytes of each file that grows."""
    batch_size: int
    """After halvings for want of memory, so that a resumed run makes the same batches."""
    counts: dict[str, Any]


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
        self._files: dict[str, IO[bytes]] = {}
        self._fresh: list[Path] = []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def open(self, first: int) -> Commit | None:
        """Open the files at the last commit, cutting off what lies behind it; None when nothing was committed.

        Args:
            first: first index of the run or shard.

        Raises:
            ValueError: when another process is writing here, or a file is shorter than the journal says.
        """
        headers = {SAMPLES: self._columns, REJECTED: _REJECTED_COLUMNS}
        names = [JOURNAL, SAMPLES, REJECTED, *(_STREAMS[f][0] for f in self._formats if f in _STREAMS)]
        for name in names:
            self._files[name] = (self.path / name).open("ab")
        journal = self._files[JOURNAL]
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it with the process
        except OSError as error:
            raise ValueError(f"{self.path} must not be written by another run, but one is running") from error
        commit, length = read_journal(self.path / JOURNAL)
        journal.truncate(length)
        journal.seek(length)
        for name in names[1:]:
            file = self._files[name]
            offset = 0 if commit is None else commit.offsets[name]
            if file.tell() < offset:
                raise ValueError(
                    f"{self.path / name} must have at least {offset} bytes, as the journal says, got "
                    f"{file.tell()}: it was changed; sample into a new folder"
                )
            file.truncate(offset)
            file.seek(offset)
            if offset == 0 and name in headers:
                file.write(_csv_text([headers[name]]))
        self._remove_files(first if commit is None else commit.stop)
        return commit

    def write(self, window: Window, samples: Sequence[Sample]) -> None:
        """Write a window; it does not count before `commit`."""
        cifs = self.path / CIFS
        has_cifs = Format.CIF in self._formats
        rows = []
        for sample in samples:
            name = f"{CIFS}/{file_stem(sample.index, self._total)}.cif" if has_cifs else ""
            row = [sample.index, sample.formula, len(sample.arrays[0]), sample.ask, sample.conditions]
            row += [sample.attempt + 1, name, sample.seed]
            rows.append(row if sample.fixed_deviation is None else [*row, f"{sample.fixed_deviation:.6f}"])
            if has_cifs:
                self._write_file(cifs / Path(name).name, sample.cif)
        self._files[SAMPLES].write(_csv_text(rows))
        refused = ([r.index, r.attempt, r.refusal.kind, r.refusal.reason] for r in window.rejected)
        self._files[REJECTED].write(_csv_text(refused))
        for chosen in self._formats:
            if chosen in _STREAMS:
                name, text = _STREAMS[chosen]
                self._files[name].write("".join(map(text, samples)).encode())
        self._write_trajectories(window.trajectory, samples)

    def commit(self, *, stop: int, batch_size: int, counts: Counts) -> None:
        """Make everything that was written so far count."""
        # Several at once: the file system makes one transaction of them, else each waits for its own.
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(_to_disk, self._fresh))
        self._fresh.clear()
        offsets = {}
        for name, file in self._files.items():
            if name != JOURNAL:
                file.flush()
                os.fsync(file.fileno())
                offsets[name] = file.tell()
        commit = {"stop": stop, "offsets": offsets, "batch_size": batch_size, "counts": counts.to_plain()}
        journal = self._files[JOURNAL]
        journal.write(f"{json.dumps(commit)}\n".encode())
        journal.flush()
        os.fsync(journal.fileno())

    def _write_file(self, path: Path, text: str) -> None:
        if not path.parent.is_dir():
            path.parent.mkdir()
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(text.encode())
        os.replace(temporary, path)
        self._fresh.append(path)

    def _write_trajectories(self, states: Sequence[CrystalBatch], samples: Sequence[Sample]) -> None:
        for sample, frames in zip(samples, zip(*(s.to_arrays() for s in states), strict=True), strict=False):
            text = "".join(extxyz_frame(frame, [("state", n)]) for n, frame in enumerate(frames))
            name = f"{file_stem(sample.index, self._total)}.extxyz"
            self._write_file(self.path / TRAJECTORIES / name, text)

    def _remove_files(self, stop: int) -> None:
        """Remove what was written after the last commit: files of crystals, and half-written ones."""
        for path in self.path.glob(".*.tmp"):
            path.unlink()
        for folder in (CIFS, TRAJECTORIES):
            for path in (self.path / folder).glob("*"):
                is_temporary = path.name.startswith(".")
                if is_temporary or (path.stem.isdecimal() and int(path.stem) >= stop):
                    path.unlink()


def read_journal(path: Path) -> tuple[Commit | None, int]:
    """The last whole line of a journal, and the length in bytes up to its end; a torn line does not count."""
    content = path.read_bytes() if path.is_file() else b""
    length = content.rfind(b"\n") + 1
    lines = content[:length].splitlines()
    return (Commit(**json.loads(lines[-1])) if lines else None), length


def _csv_text(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
