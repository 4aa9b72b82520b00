"""Property columns of a dataset: numbers with NaN for missing labels, names as integer codes.

Used by `build.py` while rows come in, and when the splits of one dataset are brought together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentite.data.cache import content_hash
from latentite.data.dataset import CrystalDataset
from latentite.data.records import CANONICAL_NAMES, Value


class LabelColumns:
    """Collects the properties of accepted rows, one by one, and makes tensors of them at the end."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Value]] = {}
        self._count = 0

    def add(self, properties: Mapping[str, Value]) -> None:
        """The labels of the next crystal; a name that it lacks is a missing label."""
        for name, value in properties.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = []
            if len(column) < self._count:
                column.extend([None] * (self._count - len(column)))
            column.append(value)
        self._count += 1

    def finish(
        self, *, properties: Sequence[str] | None, always: Sequence[str], categorical: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
        """Tensors [crystal] float32 by name, and the names behind the codes of the categorical ones.

        Args:
            properties: columns to keep, text columns becoming categorical; None for all numeric columns.
            always: columns to keep in any case (derived ones).
            categorical: columns to keep as names even when they hold numbers.

        Raises:
            ValueError: when a column that was asked for does not exist.
        """
        for column in self._columns.values():
            column.extend([None] * (self._count - len(column)))
        named = [CANONICAL_NAMES.get(name, name) for name in categorical]
        if properties is None:
            wanted = [name for name, column in self._columns.items() if _is_numeric(column)]
        else:
            wanted = [CANONICAL_NAMES.get(name, name) for name in properties]
        wanted = list(dict.fromkeys([*wanted, *named, *always]))
        missing = [name for name in wanted if name not in self._columns]
        if missing and self._count:
            raise ValueError(
                f"property must be a column of the source, got {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, self._columns)) or 'no property columns'}"
            )
        tensors: dict[str, Tensor] = {}
        categories: dict[str, tuple[str, ...]] = {}
        for name in wanted:
            column = self._columns.get(name, [])
            if name in named or not _is_numeric(column):
                texts = [_text(value) for value in column]
                categories[name] = tuple(sorted({text for text in texts if text is not None}))
                codes = {text: float(code) for code, text in enumerate(categories[name])}
                numbers = [math.nan if text is None else codes[text] for text in texts]
            else:
                numbers = [math.nan if value is None else float(value) for value in column]
            tensors[name] = torch.tensor(numbers, dtype=torch.float32)
        return tensors, categories


def _is_numeric(column: Sequence[Value]) -> bool:
    return not any(isinstance(value, str) for value in column)


def _text(value: Value) -> str | None:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return value


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
    all."""
    names: dict[str, set[str]] = {}
    for dataset in splits.values():
        for name, values in dataset.categories.items():
            names.setdefault(name, set()).update(values)
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
        categories = {name: common.get(name, values) for name, values in dataset.categories.items()}
        if categories != dataset.categories:
            crystals = dataset.crystals.with_properties(properties)
            digest = content_hash(crystals, dataset.ids, categories)
            dataset = replace(dataset, crystals=crystals, categories=categories, content_hash=digest)
        result[split] = dataset
    return result
