"""A folder of `latentite sample` as a source: the structures of that run, and what each was asked to be.

Recognised by its manifest. What else lies in it (tables of attempts, trajectories, files after the last commit) is no
structure of the run.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentite.base.files import parse_json, sha256_file
from latentite.data.readers.opening import open_records
from latentite.data.readers.records import Record, Rejection, to_properties
from latentite.data.readers.structure_files import record_of_file
from latentite.sampling.checksums import CHECKSUMS, read_commits, sum_lines
from latentite.sampling.folder import JOURNAL, MANIFEST, REJECTED, SAMPLES

_MANIFEST_KEYS = {"format", "status", "settings", "checkpoint", "range"}
_STREAMS = ("structures.extxyz", "structures.jsonl")
SAMPLED_TEXTS, _LABELS = ("ask", "conditions"), ("attempts", "seed", "fixed_deviation")
"""Columns of `samples.csv` that are kept with the structures; texts as they stand, since NaN is a formula, too."""


def find_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that `latentite sample` wrote; None for any other folder.

    Raises:
        ValueError: when it is damaged beside the journal of a run, which would else be read as a heap of files.
    """
    path = folder / MANIFEST
    if not path.is_file() or not (folder / SAMPLES).is_file():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if isinstance(content, dict) and content.keys() >= _MANIFEST_KEYS:
        return content
    if (folder / JOURNAL).is_file():
        raise ValueError(f"{path} must be the manifest of the run in its folder, and is damaged; put it back")
    return None


def read_sampled(folder: Path) -> Iterator[Record | Rejection]:
    """Every crystal that the run was asked for so far: its record with its labels, or why there is none.

    The id is the index in `samples.csv`. CIFs are read where the run wrote them, else its extxyz or JSON lines. A CIF
    that is not what the run wrote is none of its crystals: a failure.

    Raises:
        ValueError: when the structures of the run are not there, or its tables were changed.
    """
    rows = _committed(folder, SAMPLES)
    records = _records(folder, rows)
    for row, record in zip(rows, records, strict=True):
        if isinstance(record, Rejection):
            yield replace(record, id=row["index"])
        else:
            labels = to_properties({name: row[name] for name in _LABELS if name in row})
            labels |= {name: row[name] or None for name in SAMPLED_TEXTS if name in row}
            yield replace(record, id=row["index"], properties=labels)
    written = {row["index"] for row in rows}
    reasons = {row["index"]: row["reason"] for row in _committed(folder, REJECTED)}  # the last attempt stays
    for place, (index, reason) in enumerate(reasons.items()):
        if index not in written:
            reason = f"no usable attempt: {reason}"
            yield Rejection(source=REJECTED, row=place, id=index, reason=reason)


def _records(folder: Path, rows: list[dict[str, str]]) -> Iterator[Record | Rejection]:
    if all(row["file"] for row in rows):
        sums = dict(sum_lines(_committed_text(folder, CHECKSUMS)))
        for place, row in enumerate(rows):
            path, digest = folder / row["file"], sums.get(row["file"])
            if digest is not None and path.is_file() and sha256_file(path) != digest:
                reason = "was changed after it was sampled (its sha256 is another)"
                yield Rejection(source=row["file"], row=place, id="", reason=reason)
            else:
                yield record_of_file(path, row["file"], place)
        return
    stream = next((folder / name for name in _STREAMS if (folder / name).is_file()), None)
    if stream is None:
        raise ValueError(f"{folder} must hold the run's {' or '.join(_STREAMS)}, got neither")
    place = 0
    for record, _ in zip(open_records(stream), rows, strict=False):  # a kill leaves more than was committed
        place += 1
        yield replace(record, source=stream.name)
    for missing in range(place, len(rows)):
        yield Rejection(source=stream.name, row=missing, id="", reason="the file ends before this structure")


def _committed(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of a table of the run up to its last commit."""
    return list(csv.DictReader(io.StringIO(_committed_text(folder, name), newline="")))


def _committed_text(folder: Path, name: str) -> str:
    """A file of the run up to its last commit; empty where there is none.

    Raises:
        ValueError: when it is not what was committed.
    """
    content = (folder / name).read_bytes() if (folder / name).is_file() else b""
    if (folder / JOURNAL).is_file():
        commits, _ = read_commits(folder / JOURNAL)
        content = content[: commits[-1].offsets.get(name, 0) if commits else 0]
        wanted = commits[-1].sha256.get(name) if commits else None  # earlier versions did not write it
        if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
            raise ValueError(f"{folder / name} must be what the run wrote, and was changed; put it back")
    return content.decode("utf-8")
