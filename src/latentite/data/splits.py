"""One dataset into train, val and test: groups that stay together, fractions, and the folder that results.

Crystals of one reduced formula go into one split by default, because polymorphs and duplicates on both sides
make a test easier than it should be (arXiv 2509.12178). Ready-made train, val and test files are kept as
they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch

from latentite.crystal import CrystalBatch
from latentite.data.dataset import CrystalDataset, content_hash
from latentite.data.readers.records import CANONICAL_NAMES
from latentite.data.recipes import SPLITS


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """The fractions of all three splits, missing ones being 0.

    Raises:
        ValueError: for unknown splits, fractions outside 0 to 1, or a sum that is not 1.
    """
    unknown = set(fractions) - set(SPLITS)
    if unknown:
        raise ValueError(f"fractions must be given for {', '.join(SPLITS)}, got {', '.join(sorted(unknown))}")
    result = {split: float(fractions.get(split, 0.0)) for split in SPLITS}
    for split, fraction in result.items():
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"{split} fraction must be between 0 and 1, got {fraction}")
    total = sum(result.values())
    if abs(total - 1.0) > 1e-6:
        given = " + ".join(f"{fraction:g}" for fraction in result.values())
        raise ValueError(f"train, val and test fractions must sum to 1, got {given} = {total:g}")
    return result


def formula_keys(crystals: CrystalBatch) -> list[bytes]:
    """For each crystal a key that is equal exactly for equal reduced formulas."""
    keys: list[bytes] = []
    numbers, index = crystals.atomic_numbers.numpy(), crystals.crystal_index.numpy()
    ends = np.concatenate([[0], np.cumsum(crystals.num_atoms.numpy())])
    for start in range(0, len(crystals), 10_000):
        stop = min(start + 10_000, len(crystals))
        atoms = slice(ends[start], ends[stop])
        cells = (index[atoms] - start) * 128 + numbers[atoms]
        counts = np.bincount(cells, minlength=(stop - start) * 128).reshape(stop - start, 128)
        reduced = counts // np.gcd.reduce(counts, axis=1, keepdims=True)
        keys.extend(row.tobytes() for row in reduced.astype(np.uint16))
    return keys


def group_keys(dataset: CrystalDataset, group_by: str) -> list[Hashable]:
    """For each crystal the group that it must share a split with.

    Args:
        dataset: the crystals.
        group_by: `formula` (reduced), `none`, or the name of a property; a crystal without that label is a
        group
            of its own.

    Raises:
        ValueError: when there is no such property.
    """
    if group_by == "none":
        return list(dataset.ids)
    if group_by == "formula":
        return list(formula_keys(dataset.crystals))
    name = CANONICAL_NAMES.get(group_by, group_by)
    if name not in dataset.crystals.properties:
        known = ", ".join(map(repr, dataset.crystals.properties)) or "no properties"
        raise ValueError(
            f"group_by must be 'formula', 'none' or a property, got {group_by!r}; there are {known}"
        )
    values = dataset.crystals.properties[name].tolist()
    return [
        (value, "") if value == value else (0.0, key) for value, key in zip(values, dataset.ids, strict=True)
    ]


def assign_splits(groups: Sequence[Hashable], fractions: Mapping[str, float], *, seed: int) -> list[str]:
    """For each crystal its split: whole groups, drawn by the seed, filling the fractions as well as groups
    allow.

    The result depends on the groups and their sizes, not on the order of the crystals. Every split with a
    fraction above 0 gets at least one group.

    Raises:
        ValueError: when there are fewer groups than splits.
    """
    wanted = [split for split, fraction in fractions.items() if fraction > 0.0]
    sizes = Counter(groups)
    if len(sizes) < len(wanted):
        raise ValueError(
            f"{len(wanted)} splits need at least {len(wanted)} groups of crystals, got {len(sizes)} "
            f"({len(groups)} crystals); use --group-by none, or give some splits the fraction 0"
        )
    names = sorted(sizes, key=repr)
    names = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    room = {split: fractions[split] * len(groups) for split in wanted}
    members: dict[str, list[Hashable]] = {split: [] for split in wanted}
    for name in names:
        size = sizes[name]
        # The emptiest split in relation to its target that still has room; else the one with most room left.
        roomy = [split for split in wanted if room[split] >= size]
        split = (
            max(roomy, key=lambda s: room[s] / fractions[s]) if roomy else max(wanted, key=lambda s: room[s])
        )
        room[split] -= size
        members[split].append(name)
    for split in wanted:
        if not members[split]:
            donor = max(wanted, key=lambda s: len(members[s]))
            smallest = min(members[donor], key=lambda g: sizes[g])
            members[donor].remove(smallest)
            members[split].append(smallest)
    split_of = {name: split for split, group in members.items() for name in group}
    return [split_of[group] for group in groups]


def select(dataset: CrystalDataset, index: Sequence[int]) -> CrystalDataset:
    """The crystals at the given positions as a dataset of their own."""
    crystals = dataset.crystals.select(torch.tensor(list(index), dtype=torch.long))
    ids = tuple(dataset.ids[k] for k in index)
    digest = content_hash(crystals, ids, dataset.categories)
    return CrystalDataset(crystals=crystals, ids=ids, categories=dataset.categories, content_hash=digest)


def divide(
    dataset: CrystalDataset, shares: Mapping[str, float], *, group_by: str, seed: int
) -> dict[str, CrystalDataset]:
    """The dataset cut into splits; those with the share 0 are absent."""
    assigned = assign_splits(group_keys(dataset, group_by), shares, seed=seed)
    index: dict[str, list[int]] = {split: [] for split in SPLITS if shares[split] > 0.0}
    for position, split in enumerate(assigned):
        index[split].append(position)
    return {split: select(dataset, positions) for split, positions in index.items()}


def shared_formulas(splits: Mapping[str, CrystalDataset]) -> int:
    """Number of reduced formulas of the test split that the train split has too; 0 without either."""
    if "train" not in splits or "test" not in splits:
        return 0
    train, test = (set(formula_keys(splits[split].crystals)) for split in ("train", "test"))
    return len(train & test)
