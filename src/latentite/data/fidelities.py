"""Labels of several levels of theory (fidelities) as one data set, divided so that nothing leaks.

Each fidelity is a source of its own; together they make rows of (crystal, fidelity), with the property `fidelity`
saying which. A material, known by its id, is in the same split at every fidelity: where given splits disagree it goes
to the safer one (test before val before train), and where none is given its id decides.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch

from latentite.crystal import FIDELITY, CrystalBatch
from latentite.data.build import WHOLE, build_splits
from latentite.data.dataset import CrystalDataset, content_hash, read_dataset
from latentite.data.labels import log_labels, share_categories
from latentite.data.options import BuildOptions
from latentite.data.recipes import SPLITS
from latentite.data.sources import split_files
from latentite.data.splits import check_fractions, formula_keys, select

log = logging.getLogger(__name__)

_REPEATED = re.compile(r"#\d+\Z")
_IN_GROUP = re.compile(r"\d+/\d+\Z")
_SAFEST_FIRST = ("test", "val", "train")


class SplitBy(StrEnum):
    """The key by which two rows are the same material."""

    ID = "id"
    FORMULA = "formula"
    """The reduced formula; for sources whose ids do not agree."""


@dataclass(kw_only=True, slots=True)
class FidelityConfig:
    """One level of theory: where its labels are, and how often they are drawn."""

    path: Path
    """A folder with train, val and test files, or one source (a file, a folder of structures) to be divided."""
    weight: float | None = None
    """Its share of the rows drawn in training, relative to the other fidelities (where one has a weight, the
    others' default is 1). Null everywhere: every row once per epoch."""
    columns: dict[str, str] = field(default_factory=dict)
    """For a property that is called otherwise here: its column by our name."""
    properties: list[str] | None = None
    """Labels that this fidelity has, columns of text among them; null: its numeric columns."""
    dispersion: bool | None = None
    """True where energies contain dispersion (D3, VV10, a van der Waals functional, experiment); null: not said. An
    export adds D3 only where this is false."""

    def __post_init__(self) -> None:
        if not self.path.expanduser().exists():
            raise ValueError(f"path must be an existing file or folder, got {str(self.path)!r}")
        if self.weight is not None and not 0.0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be 0 or more, or null, got {self.weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityCounts:
    """Counts of one fidelity's rows; rows in = rows of all splits + rejected ones."""

    num_in: int
    num_rejected: int
    """Of tables; a folder made by `latentite data build` has its own `rejected.csv`."""
    rows: dict[str, int]
    """By split."""
    moved: dict[str, int]
    """Rows that another fidelity's split took along, as `train -> test`."""
    without_label: dict[str, int]
    """Rows that lack a property, by property; they stay, with NaN."""

    def __str__(self) -> str:
        """As a sentence of the log: what is 0 is left out."""
        parts = [f"{self.num_in:,} rows in, {self.num_rejected:,} rejected"]
        parts += [f"{split} {count:,}" for split, count in self.rows.items() if count]
        parts += [f"{count:,} moved {where}" for where, count in self.moved.items() if count]
        parts += [f"{count:,} without {name}" for name, count in self.without_label.items() if count]
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityData:
    """Joint splits, and where their rows come from."""

    splits: dict[str, CrystalDataset]
    counts: dict[str, FidelityCounts]


@dataclass(frozen=True, kw_only=True, slots=True)
class FidelityPart:
    """The rows of one fidelity, divided (`train`, `val`, `test`) or not (`whole`)."""

    splits: dict[str, CrystalDataset]
    num_rejected: int = 0


def join_fidelities(
    parts: Mapping[str, FidelityPart],
    *,
    properties: Sequence[str] = (),
    fractions: Mapping[str, float],
    split_by: SplitBy = SplitBy.ID,
    seed: int = 0,
) -> FidelityData:
    """All rows of all fidelities in joint splits; no material is in two of them.

    The draw of a material depends on its key and the seed alone: adding rows or a fidelity moves no other one.

    Args:
        parts: by fidelity, in the order of the property `fidelity`.
        properties: columns to keep; those that a fidelity lacks are NaN there. Empty: all.
        fractions: of the materials that no source has given a split.
        split_by: what makes two rows the same material.
        seed: of the draw.

    Raises:
        ValueError: for a property that no fidelity has, one that is a number here and a name there, or ids that
            are only row numbers.
    """
    shares = check_fractions(fractions)
    if split_by is SplitBy.ID and len(parts) > 1:
        _refuse_row_numbers(parts)
    wanted = _wanted(parts, properties)
    origins = [(name, given) for name, part in parts.items() for given in part.splits]
    shared = share_categories({str(o): parts[o[0]].splits[o[1]] for o in origins})
    datasets = dict(zip(origins, shared.values(), strict=True))
    keys = {origin: _keys(dataset, split_by) for origin, dataset in datasets.items()}
    placed = _place(keys, shares, seed)
    pieces: dict[str, list[CrystalDataset]] = {split: [] for split in SPLITS}
    counts = {}
    for position, (name, part) in enumerate(parts.items()):
        rows, moved, lacking = dict.fromkeys(SPLITS, 0), Counter[str](), Counter[str]()
        for given in part.splits:
            dataset = _with_columns(datasets[name, given], wanted, position)
            lacking.update({p: int(dataset.crystals.properties[p].isnan().sum()) for p in wanted})
            target = np.array([placed[key] for key in keys[name, given]])
            for split in SPLITS:
                if len(chosen := np.flatnonzero(target == split)):
                    pieces[split].append(select(dataset, chosen.tolist()))
                    rows[split] += len(chosen)
                    moved[f"{given} -> {split}"] += len(chosen) if given not in (WHOLE, split) else 0
        counts[name] = FidelityCounts(
            num_in=part.num_rejected + sum(map(len, part.splits.values())),
            num_rejected=part.num_rejected,
            rows=rows,
            moved=dict(+moved),
            without_label=dict(+lacking),
        )
        assert counts[name].num_in == part.num_rejected + sum(rows.values()), (name, rows)
    return FidelityData(
        splits={s: _joined(parts_of_split) for s, parts_of_split in pieces.items() if parts_of_split},
        counts=counts,
    )


def material_key(identifier: str) -> str:
    """The id of the material: a row that `build.py` has marked as a repeat (`#2`) is of the same one."""
    return _REPEATED.sub("", identifier)


def _keys(dataset: CrystalDataset, split_by: SplitBy) -> list[Hashable]:
    if split_by is SplitBy.FORMULA:
        return list(formula_keys(dataset.crystals))
    return [material_key(identifier) for identifier in dataset.ids]


def _place(
    keys: Mapping[tuple[str, str], Sequence[Hashable]], shares: Mapping[str, float], seed: int
) -> dict[Hashable, str]:
    """The one split of every material, from the keys of each fidelity's given splits."""
    placed: dict[Hashable, str] = {}
    for split in (*_SAFEST_FIRST, WHOLE):
        for (_, given), materials in keys.items():
            if given == split:
                new = [key for key in materials if key not in placed]
                placed.update((key, _drawn(key, shares, seed) if split == WHOLE else split) for key in new)
    return placed


def _drawn(key: Hashable, shares: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\0{key!r}".encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    for split in SPLITS:
        if point < shares[split]:
            return split
        point -= shares[split]
    return max(
        SPLITS, key=lambda name: shares[name]
    )  # the last few of 2^64, where the shares sum to 1 - 1e-16


def _refuse_row_numbers(parts: Mapping[str, FidelityPart]) -> None:
    """Row numbers stand for ids where a source has none; the same number then means nothing."""
    for name, part in parts.items():
        for dataset in part.splits.values():
            if dataset.ids and _are_row_numbers(dataset.ids, len(dataset) + part.num_rejected):
                raise ValueError(
                    f"fidelity {name} must have a column 'material_id' that says which rows of other fidelities are "
                    f"the same material, got row numbers ({dataset.ids[0]}, ...); add one, or set "
                    "data.split_by=formula"
                )


def _are_row_numbers(ids: Sequence[str], num_in: int) -> bool:
    """`0`, `1`, `3`, ... in order, or `004/17` of an HDF5 group; databases number with larger steps."""
    if all(map(_IN_GROUP.match, ids)):
        return True
    if not all(identifier.isdecimal() for identifier in ids):
        return False
    numbers = [int(identifier) for identifier in ids]
    return numbers == sorted(set(numbers)) and numbers[-1] < 2 * num_in


def _wanted(parts: Mapping[str, FidelityPart], properties: Sequence[str]) -> list[str]:
    known: dict[str, bool] = {}
    for name, part in parts.items():
        for dataset in part.splits.values():
            for label, values in dataset.crystals.properties.items():
                is_names = label in dataset.categories
                if label in known and not is_names and bool(values.isnan().all()):
                    continue  # no label at all says nothing about their kind
                if known.setdefault(label, is_names) != is_names:
                    raise ValueError(
                        f"{label} must be numbers at every fidelity or names at every one, got both ({name})"
                    )
    if missing := [name for name in properties if name not in known]:
        raise ValueError(
            f"a property must be a label of at least one fidelity, got {missing[0]!r}; "
            f"there are {', '.join(known) or 'none'}"
        )
    if FIDELITY in known:
        raise ValueError(f"no source may have a column {FIDELITY!r}; leave it out or rename it")
    return list(properties) or list(known)


def _with_columns(dataset: CrystalDataset, names: Sequence[str], position: int) -> CrystalDataset:
    """With exactly these properties, NaN where it has none, and its fidelity."""
    known, count = dataset.crystals.properties, len(dataset)
    labels = {name: known[name] if name in known else torch.full((count,), torch.nan) for name in names}
    labels[FIDELITY] = torch.full((count,), float(position))
    categories = {name: names for name, names in dataset.categories.items() if name in labels}
    crystals = dataset.crystals.with_properties(labels)
    digest = content_hash(crystals, dataset.ids, categories)
    return CrystalDataset(crystals=crystals, ids=dataset.ids, categories=categories, content_hash=digest)


def _joined(pieces: Sequence[CrystalDataset]) -> CrystalDataset:
    crystals = CrystalBatch.concatenate([piece.crystals for piece in pieces])
    ids = tuple(identifier for piece in pieces for identifier in piece.ids)
    categories = {name: names for piece in pieces for name, names in piece.categories.items()}
    digest = content_hash(crystals, ids, categories)
    return CrystalDataset(crystals=crystals, ids=ids, categories=categories, content_hash=digest)


# ------------------------------------------------------------------------------ rows of one fidelity


def read_fidelity(
    config: FidelityConfig,
    name: str,
    *,
    options: BuildOptions,
    cache_dir: Path | None = None,
    workers: int | None = None,
) -> FidelityPart:
    """The rows of one fidelity, under our names.

    Raises:
        FileNotFoundError: when the path does not exist.
        ValueError: when the source is unusable, lacks a column or ids, or has no usable row.
    """
    path = config.path.expanduser()
    files = (split_files(path) if path.is_dir() else {}) or {WHOLE: path}
    tables = {split: file for split, file in files.items() if file.suffix != ".safetensors"}
    built = build_splits(tables, options=options, cache_dir=cache_dir, workers=workers)
    log_labels(built.labels)
    splits: dict[str, CrystalDataset] = {}
    num_rejected = 0
    for split, file in files.items():
        if split in tables:
            result = built.results[split]
            dataset, num_rejected = result.dataset, num_rejected + len(result.rejections)
            if result.rejections:
                log.warning(
                    "fidelity %s, %s: %d rows = %d accepted + %d rejected (first: %s)",
                    name, file.name, result.num_in, len(dataset), len(result.rejections),
                    result.rejections[0].reason,
                )  # fmt: skip
        else:
            dataset = read_dataset(file)
        splits[split] = _renamed(dataset, config.columns, name)
    if not any(map(len, splits.values())):
        raise ValueError(
            f"fidelity {name} must have at least one usable crystal, got none ({num_rejected} rejected) in {path}"
        )
    return FidelityPart(splits=splits, num_rejected=num_rejected)


def _renamed(dataset: CrystalDataset, columns: Mapping[str, str], fidelity: str) -> CrystalDataset:
    known = dataset.crystals.properties
    for ours, theirs in columns.items():
        if theirs not in known:
            raise ValueError(
                f"fidelity {fidelity} must have the column {theirs!r} (its {ours}), got "
                f"{', '.join(known) or 'no property columns'}"
            )
    sources = {name: name for name in known if name not in columns.values()} | dict(columns)
    categories = {
        ours: dataset.categories[theirs] for ours, theirs in sources.items() if theirs in dataset.categories
    }
    crystals = dataset.crystals.with_properties({ours: known[theirs] for ours, theirs in sources.items()})
    digest = content_hash(crystals, dataset.ids, categories)
    return CrystalDataset(crystals=crystals, ids=dataset.ids, categories=categories, content_hash=digest)
