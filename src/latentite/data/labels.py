"""Property columns of a data set: numbers with NaN for missing labels, names as integer codes.

What a column is, is decided once for all splits of a data set (`kinds.py`); what is asked for is there or refused,
what is not asked for is listed with why it was left.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentite.data.cells import RawLabels
from latentite.data.dataset import CrystalDataset, content_hash, save_tensors, take, to_bytes
from latentite.data.kinds import Column, ColumnKind, Remark, read_column
from latentite.data.readers.records import CANONICAL_NAMES, Value

log = logging.getLogger(__name__)

NOT_ASKED, TEXT, EMPTY = "not asked for", "text", "empty"


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRequest:
    """The columns that are wanted."""

    properties: tuple[str, ...] | None = None
    """Columns that must be there; one of texts becomes names. None for all columns of numbers."""
    categorical: tuple[str, ...] = ()
    """Columns that must be there and are names even when they hold numbers."""
    if_present: tuple[str, ...] = ()
    """Columns that are wanted where the source has them."""

    def names(self) -> set[str] | None:
        """All of them under our names; None for every column."""
        if self.properties is None:
            return None
        return {ours(name) for name in (*self.properties, *self.categorical, *self.if_present)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitLabels:
    """Cells of the crystals of one split before columns are decided on."""

    raw: RawLabels
    ids: tuple[str, ...]
    derived: Mapping[str, Sequence[Value]]
    """Computed properties by name: numbers (NaN where there is none) or names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecidedLabels:
    """Labels of all splits of a data set, and what there is to be said of them."""

    properties: dict[str, dict[str, Tensor]]
    """[crystal] float32 by split and name."""
    categories: dict[str, tuple[str, ...]]
    """Names behind the codes of categorical properties, the same in every split."""
    left_out: dict[str, str]
    """Reason for which a column of the source is no property: `text, ...`, `empty`, `not asked for`, or the cell that
    stands in the way."""
    remarks: tuple[str, ...]
    """Cells that were taken as missing, cleaned or worth a look, each with its column, row and text."""


def ours(name: str) -> str:
    """Our name of a column."""
    return CANONICAL_NAMES.get(name, name)


def decide_labels(splits: Mapping[str, SplitLabels], request: LabelRequest) -> DecidedLabels:
    """Decide what every column is, over all splits, and read those that are wanted.

    Raises:
        ValueError: when a column that was asked for does not exist, or cannot be read; then naming its first row and
            text that cannot.
    """
    if not splits:
        return DecidedLabels(properties={}, categories={}, left_out={}, remarks=())
    known = list(dict.fromkeys(name for split in splits.values() for name in split.raw.names))
    asked, named = _asked(splits, request, known), set(map(ours, request.categorical))
    derived = dict.fromkeys(name for split in splits.values() for name in split.derived)
    wanted: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    remarks: list[str] = []
    for name in dict.fromkeys([*(known if request.properties is None else ()), *asked]):
        if name in derived:
            continue
        column = read_column(_cells(splits, name), as_names=name in named, only_numbers=name not in asked)
        if column.problem is not None and name in asked:
            raise ValueError(_refusal(name, _said(splits, column.problem)))
        if name in asked or column.kind in (ColumnKind.NUMBERS, ColumnKind.BOOLEANS):
            wanted[name] = column
            remarks += [f"{name}: {_said(splits, remark)}" for remark in column.remarks]
            remarks += _gaps(splits, name, column)
        else:
            left_out[name] = _why_left(splits, column)
    left_out |= {
        name: NOT_ASKED for name in known if not (name in wanted or name in left_out or name in derived)
    }
    for name in derived:
        wanted[name] = _computed([value for split in splits.values() for value in split.derived[name]])
    properties, categories = _tensors(splits, wanted)
    return DecidedLabels(
        properties=properties, categories=categories, left_out=left_out, remarks=tuple(remarks)
    )


def _asked(splits: Mapping[str, SplitLabels], request: LabelRequest, known: Sequence[str]) -> list[str]:
    """Names that must be served, in the order of the request; each is a column of every split that has crystals."""
    must = list(dict.fromkeys(map(ours, (*(request.properties or ()), *request.categorical))))
    for split, labels in splits.items():
        names = labels.raw.names
        if len(labels.ids) and (missing := [name for name in must if name not in names]):
            where = "the source" if len(splits) == 1 else f"every split, also of {split}"
            raise ValueError(
                f"property must be a column of {where}, got {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, names)) or 'no property columns'}"
            )
    optional = [name for name in map(ours, request.if_present) if name in known]
    return list(dict.fromkeys([*must, *optional]))


def _cells(splits: Mapping[str, SplitLabels], name: str) -> list[Value]:
    """A column over all splits; a split that lacks it has no labels."""
    cells: list[Value] = []
    for split in splits.values():
        cells.extend(split.raw.columns.get(name) or [None] * len(split.ids))
    return cells


def _said(splits: Mapping[str, SplitLabels], remark: Remark) -> str:
    """A remark with its cell: text, row, file and id."""
    position = remark.position
    for split in splits.values():
        if position < len(split.ids):
            place = f"{split.raw.place(position)} (id {split.ids[position]})"
            return f"{remark.text!r} in {place}: {remark.words}"
        position -= len(split.ids)
    raise AssertionError(f"no cell {remark.position}")


def _refusal(name: str, said: str) -> str:
    return (
        f"{name} must be numbers, or names none of which looks like one, got {said}; correct or empty this cell (where "
        f"names are meant, latentite data build --categorical {name} takes all cells of {name} as names)"
    )


def _why_left(splits: Mapping[str, SplitLabels], column: Column) -> str:
    if column.problem is not None:
        return _said(splits, column.problem)
    if column.kind is ColumnKind.EMPTY:
        return EMPTY
    example = next(name for name in column.names if name is not None)
    return f"{TEXT}, such as {example[:40]!r}"


def _gaps(splits: Mapping[str, SplitLabels], name: str, column: Column) -> list[str]:
    """Remarks on a column that has no labels, or none in one split."""
    if column.kind is ColumnKind.EMPTY:
        return [f"{name}: no crystal has this label"]
    lacking = [split for split, labels in splits.items() if len(labels.ids) and name not in labels.raw.names]
    return [f"{name}: {split} has no such column, so that all its labels are missing" for split in lacking]


def _computed(values: Sequence[Value]) -> Column:
    """A derived property, whose kind its values have."""
    if any(isinstance(value, str) for value in values):
        names = tuple(None if value is None else str(value) for value in values)
        return Column(kind=ColumnKind.NAMES, numbers=np.full(len(values), np.nan), names=names)
    return Column(kind=ColumnKind.NUMBERS, numbers=np.array(values, dtype=np.float64))


def _tensors(
    splits: Mapping[str, SplitLabels], wanted: Mapping[str, Column]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, tuple[str, ...]]]:
    properties: dict[str, dict[str, Tensor]] = {split: {} for split in splits}
    categories: dict[str, tuple[str, ...]] = {}
    for name, column in wanted.items():
        values = column.numbers
        if column.kind is ColumnKind.NAMES:
            categories[name] = tuple(sorted({text for text in column.names if text is not None}))
            codes = {text: float(code) for code, text in enumerate(categories[name])}
            values = np.array([math.nan if text is None else codes[text] for text in column.names])
        start = 0
        for split, labels in splits.items():
            part = values[start : start + len(labels.ids)].astype(np.float32)
            properties[split][name] = torch.from_numpy(part)
            start += len(labels.ids)
    return properties, categories


def with_labels(
    dataset: CrystalDataset, properties: Mapping[str, Tensor], categories: Mapping[str, tuple[str, ...]]
) -> CrystalDataset:
    """The crystals of a dataset with these labels in place of their own; of categories those among them."""
    crystals = dataset.crystals.with_properties(properties)
    kept = {name: names for name, names in categories.items() if name in properties}
    digest = content_hash(crystals, dataset.ids, kept)
    return CrystalDataset(crystals=crystals, ids=dataset.ids, categories=kept, content_hash=digest)


def log_labels(decided: DecidedLabels) -> None:
    """Say what was left out and what was read in a way that is worth a line."""
    plain = (NOT_ASKED, TEXT, EMPTY)
    for name, why in decided.left_out.items():
        if not why.startswith(plain):
            log.warning("%s is left out: %s", name, why)
    if quiet := [
        f"{name} ({why})" for name, why in decided.left_out.items() if why.startswith((TEXT, EMPTY))
    ]:
        log.info("columns left out: %s", ", ".join(quiet))
    for remark in decided.remarks:
        log.warning("%s", remark)


def require_numbers(dataset: CrystalDataset, name: str, *, use: str) -> None:
    """Refuse names where numbers are needed.

    Args:
        dataset: of which `name` may be a property.
        name: of the property.
        use: what needs the numbers, for the message.

    Raises:
        ValueError: naming the first crystal with such a label, and its text.
    """
    if name not in dataset.categories:
        return
    codes = dataset.crystals.properties[name]
    known = (~codes.isnan()).nonzero().flatten().tolist()
    example = "no label at all"
    if known:
        text = dataset.categories[name][int(codes[known[0]])]
        example = f"{text!r} in row {known[0]} (id {dataset.ids[known[0]]})"
    raise ValueError(
        f"{use} needs {name} as numbers, got names, the first of them {example}; correct the column in its source "
        "and build the data again"
    )


def unique_ids(ids: Sequence[str]) -> list[str]:
    """The same ids, later duplicates marked `#2`, `#3`, ... so that each names one crystal."""
    if len(set(ids)) == len(ids):
        return list(ids)
    taken, seen = set(ids), dict[str, int]()
    result: list[str] = []
    for identifier in ids:
        seen[identifier] = number = seen.get(identifier, 0) + 1
        name = identifier
        while number > 1 and (name := f"{identifier}#{number}") in taken:
            seen[identifier] = number = number + 1
        taken.add(name)
        result.append(name)
    return result


def share_categories(splits: Mapping[str, CrystalDataset]) -> dict[str, CrystalDataset]:
    """The splits with one common list of names per categorical property, so that a code means the same in
    all.

    Raises:
        ValueError: when a property is names in one split and numbers in another.
    """
    names: dict[str, set[str]] = {}
    for dataset in splits.values():
        for name, values in dataset.categories.items():
            names.setdefault(name, set()).update(values)
    for name in names:
        for split, dataset in splits.items():
            labels = dataset.crystals.properties.get(name)
            if name not in dataset.categories and labels is not None and not bool(labels.isnan().all()):
                raise ValueError(
                    f"{name} must be numbers in every split or names in every one, got numbers in {split}; "
                    "build all splits together from their sources"
                )
    common = {name: tuple(sorted(values)) for name, values in names.items()}
    result = {}
    for split, dataset in splits.items():
        properties = dict(dataset.crystals.properties)
        for name, values in dataset.categories.items():
            if values == common[name]:
                continue
            position = {text: code for code, text in enumerate(common[name])}
            recode = torch.tensor([float(position[text]) for text in values] + [math.nan])
            codes = properties[name]
            properties[name] = recode[torch.where(codes.isnan(), len(values), codes).long()]
        categories = {name: common[name] for name in properties if name in common}
        if categories != dataset.categories:
            crystals = dataset.crystals.with_properties(properties)
            digest = content_hash(crystals, dataset.ids, categories)
            dataset = replace(dataset, crystals=crystals, categories=categories, content_hash=digest)
        result[split] = dataset
    return result


# ------------------------------------------------------------------------------ decided labels, kept


DECIDED_FORMAT = 2
"""Raised whenever the same cells are decided on in another way."""


def request_key(keys: Mapping[str, str], request: Mapping[str, Any]) -> str:
    """sha256 over all that labels depend on: the crystals of every split (by key), and what is asked for."""
    parts = {"splits": dict(keys), "request": request, "format": DECIDED_FORMAT}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_decided(path: Path, decided: DecidedLabels) -> None:
    """Write them as one file, atomically."""
    about = {
        "names": {split: list(labels) for split, labels in decided.properties.items()},
        "categories": decided.categories,
        "left_out": decided.left_out,
        "remarks": decided.remarks,
    }
    tensors = {
        f"{split}.{name}": values
        for split, labels in decided.properties.items()
        for name, values in labels.items()
    }
    save_tensors(path, tensors | {"about": to_bytes(about)}, {"latentite.decided": str(DECIDED_FORMAT)})


def read_decided(path: Path) -> DecidedLabels | None:
    """The labels of a file of `write_decided`; None where there is no such file, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            if (handle.metadata() or {}).get("latentite.decided") != str(DECIDED_FORMAT):
                raise ValueError(f"it must have the format {DECIDED_FORMAT}")
            about = json.loads(take(handle, "about").numpy().tobytes())
            return DecidedLabels(
                properties={
                    split: {name: take(handle, f"{split}.{name}") for name in names}
                    for split, names in about["names"].items()
                },
                categories={name: tuple(values) for name, values in about["categories"].items()},
                left_out=about["left_out"],
                remarks=tuple(about["remarks"]),
            )
    except (SafetensorError, KeyError, ValueError) as error:
        log.warning("%s in the cache is damaged and is made again: %s", path, error)
        return None
