"""Any source to crystals as they are, nothing cleaned away: what is evaluated, and what it is held against.

Unlike a dataset, an evaluation must see overlapping atoms and collapsed cells; so the limits are open, and only what
is no crystal at all becomes a failure.

A folder of `latentite sample`, recognised by its manifest, gives the structures of that run and what each was asked to
be. What else lies in it (tables of attempts, trajectories, files after the last commit) is no structure of the run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from latentite.base.files import parse_json, sha256_file
from latentite.crystal import CrystalBatch
from latentite.crystal_arrays import CrystalArrays
from latentite.data.dataset import read_dataset, read_rejections
from latentite.data.kinds import read_column
from latentite.data.labels import unique_ids
from latentite.data.readers.checks import Limits, refusals
from latentite.data.readers.opening import open_records
from latentite.data.readers.records import Record, Rejection, Value, to_properties
from latentite.data.readers.rows import Row, parse_rows, read
from latentite.data.readers.structure_files import record_of_file
from latentite.data.sources import DATASETS, near_names, resolve, split_files
from latentite.evaluation.store import structure_hash
from latentite.sampling.folder import REJECTED, SAMPLES
from latentite.sampling.manifest import CHECKSUMS, JOURNAL, MANIFEST, read_commits, sum_lines

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

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


log = logging.getLogger(__name__)

Source: TypeAlias = "str | Path | Sequence[Structure | Atoms] | CrystalBatch"
"""A file or folder that the readers know, a folder of splits or of `latentite sample`, the name of a dataset, or
crystals in memory."""

OPEN_LIMITS = Limits(max_atoms=None, min_distance=0.0, min_volume_per_atom=0.0, max_volume_per_atom=math.inf)
"""Lets through every cell with a volume and finite coordinates."""

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crystals:
    """Crystals of a source as they stand there, and the rows that are none."""

    name: str
    ids: tuple[str, ...]
    """Unique: a repeated id gets a number."""
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    """Position of each within its source, from 0."""
    arrays: tuple[CrystalArrays, ...]
    hashes: tuple[str, ...]
    """`structure_hash` of each."""
    rejections: tuple[Rejection, ...]
    labels: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Columns of the source (properties; of a sampling run `ask` and `conditions`); None where a cell says nothing."""
    sampling: Mapping[str, Any] | None = None
    """The manifest, when the source is a folder of `latentite sample`."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_in(self) -> int:
        """Rows of the source: crystals + rejections."""
        return len(self.ids) + len(self.rejections)

    @property
    def content_hash(self) -> str:
        """sha256 of the ids and the crystals, in order."""
        pairs = zip(self.ids, self.hashes, strict=True)
        return hashlib.sha256("".join(f"{name}\0{digest}\0" for name, digest in pairs).encode()).hexdigest()


def require_source(option: str, source: object) -> None:
    """Refuse a path or name behind which there is nothing.

    Raises:
        FileNotFoundError: with the option, and the datasets that may have been meant.
    """
    if isinstance(source, str | Path) and not Path(source).exists() and str(source) not in DATASETS:
        raise FileNotFoundError(
            f"{option} must be a path that exists or the name of a dataset, got {source}; {near_names(str(source))}"
        )


def read_crystals(
    source: Source,
    *,
    split: str,
    advance: Callable[[int], None] = lambda count: None,
) -> Crystals:
    """All crystals of a source.

    Args:
        source: a file or folder that the readers know, a folder of splits, the name of a dataset, pymatgen
            structures, ASE atoms or a `CrystalBatch`.
        split: which split of a folder of splits or a named dataset: train, val, test or all.
        advance: told how many more rows are read.

    Raises:
        FileNotFoundError: when there is no such path and no dataset of that name.
        ValueError: when the source as a whole cannot be used, or has no such split.
    """
    if isinstance(source, CrystalBatch):
        return _pack("crystals in memory", _checked(_rows_of_batch("memory", source, None)))
    if not isinstance(source, (str, Path)):
        return _pack("structures in memory", _told(read(source, limits=OPEN_LIMITS), advance))
    path = Path(source)
    if not path.exists() and str(source) in DATASETS:
        path = resolve(str(source))
    if path.is_dir() and (manifest := find_manifest(path)) is not None:
        items = parse_rows(read_sampled(path), OPEN_LIMITS)
        return _pack(str(source), _told(items, advance), sampling=manifest)
    if not path.is_dir() or not (files := split_files(path)):
        return _pack(str(source), _told(_read_file(path), advance))
    if split not in SPLITS:
        raise ValueError(f"the split must be one of {', '.join(SPLITS)}, got {split!r}")
    if split != "all" and split not in files:
        raise ValueError(f"{path} must have a {split} split, got {', '.join(files)}; name one of these")
    chosen = list(files.values()) if split == "all" else [files[split]]
    return _pack(
        f"{source} ({split})", _told((item for file in chosen for item in _read_file(file)), advance)
    )


def _read_file(path: Path) -> Iterable[Row | Rejection]:
    if path.suffix != ".safetensors":
        return read(path, limits=OPEN_LIMITS)
    dataset = read_dataset(path)
    rows = _rows_of_batch(path.name, dataset.crystals, dataset.ids, dataset.categories)
    return [*rows, *read_rejections(path)]


def _told(items: Iterable[Row | Rejection], advance: Callable[[int], None]) -> Iterable[Row | Rejection]:
    for item in items:
        yield item
        advance(1)


def _rows_of_batch(
    source: str,
    crystals: CrystalBatch,
    ids: Sequence[str] | None,
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Row]:
    labels: dict[str, list[Value]] = {
        name: [None if math.isnan(value) else value for value in values.tolist()]
        for name, values in crystals.properties.items()
    }
    for name, words in categories.items():
        labels[name] = [None if code is None else words[int(code)] for code in labels[name]]
    return [
        Row(
            source=source,
            row=position,
            id=str(position) if ids is None else ids[position],
            atomic_numbers=crystal.atomic_numbers,
            frac_coords=crystal.frac_coords,
            lattice=crystal.lattice,
            properties={name: values[position] for name, values in labels.items()},
        )
        for position, crystal in enumerate(crystals.to_arrays())
    ]


def _checked(rows: Sequence[Row]) -> list[Row | Rejection]:
    crystals = [CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice) for row in rows]
    reasons = refusals(crystals, OPEN_LIMITS)
    return [
        row if reason is None else Rejection(source=row.source, row=row.row, id=row.id, reason=reason)
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _pack(
    name: str, items: Iterable[Row | Rejection], *, sampling: Mapping[str, Any] | None = None
) -> Crystals:
    rows: list[Row] = []
    rejections: list[Rejection] = []
    for item in items:
        if isinstance(item, Row):
            rows.append(item)
        else:
            rejections.append(item)
    arrays = tuple(CrystalArrays(row.atomic_numbers, row.frac_coords, row.lattice) for row in rows)
    return Crystals(
        name=name,
        ids=tuple(unique_ids([row.id for row in rows])),
        sources=tuple(row.source for row in rows),
        rows=tuple(row.row for row in rows),
        arrays=arrays,
        hashes=tuple(map(structure_hash, arrays)),
        rejections=tuple(rejections),
        labels=_labels(name, rows, as_they_stand=SAMPLED_TEXTS if sampling is not None else ()),
        sampling=sampling,
    )


def _labels(
    name: str, rows: Sequence[Row], *, as_they_stand: Collection[str]
) -> dict[str, tuple[Value, ...]]:
    """Every column of the source, decided on as a whole; one that nobody can read is said and left out."""
    labels: dict[str, tuple[Value, ...]] = {}
    for label in dict.fromkeys(label for row in rows for label in row.properties):
        cells = tuple(row.properties.get(label) for row in rows)
        column = read_column(cells) if label not in as_they_stand else None
        if column is None:
            labels[label] = cells
        elif column.problem is not None:
            row, problem = rows[column.problem.position], column.problem
            log.warning(
                "%s: the column %s is left out: %r in row %d (id %s) %s",
                name, label, problem.text, row.row, row.id, problem.words,
            )  # fmt: skip
        elif column.is_numeric:
            numbers = column.numbers.tolist()
            labels[label] = tuple(None if math.isnan(number) else number for number in numbers)
        else:
            labels[label] = column.names
    return labels
