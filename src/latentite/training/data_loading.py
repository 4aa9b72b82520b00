"""From `DataConfig` to the splits that it names, with their labels, features and counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from latentite.data.dataset import CrystalDataset, attach_features
from latentite.data.fidelities import FidelityCounts, FidelityData, join_fidelities
from latentite.data.options import BuildOptions
from latentite.data.sources import splits_folder
from latentite.training.settings import DataConfig

log = logging.getLogger(__name__)


def load(config: DataConfig) -> dict[str, CrystalDataset]:
    """The splits that a config names; see `load_data`."""
    return load_data(config).splits


def load_data(config: DataConfig) -> FidelityData:
    """The splits that a config names: of a folder, of a named data set (made or fetched where missing), or the
    joint ones of its fidelities, with their counts.

    Raises:
        ValueError: if a split cannot be used, or a property that was asked for is not there.
    """
    counts: dict[str, FidelityCounts] = {}
    if config.fidelities:
        splits, counts = _load_fidelities(config)
    else:
        splits = _load_folder(config)
    if config.atom_features_path is not None:
        features = config.atom_features_path
        splits = {
            name: attach_features(dataset, features / f"{name}.safetensors")
            for name, dataset in splits.items()
        }
    splits = {name: _up_to(config.max_atoms, dataset, name) for name, dataset in splits.items()}
    if config.max_crystals is not None:
        splits = {name: _first(dataset, config.max_crystals) for name, dataset in splits.items()}
    for name, dataset in splits.items():
        log.info("%s: %d crystals, %d atoms", name, len(dataset), dataset.crystals.total_atoms)
    return FidelityData(splits=splits, counts=counts)


def _load_folder(config: DataConfig) -> dict[str, CrystalDataset]:
    from latentite.data.build import load_splits

    wanted = config.wanted_properties
    options = _options(config, numbers_only=not wanted)
    folder = splits_folder(config.name, config.data_dir)
    splits = load_splits(folder, options=options, cache_dir=config.cache_dir, workers=config.workers)
    splits = {name: _with_derived(dataset, options.derived) for name, dataset in splits.items()}
    for name, dataset in splits.items():
        known = dataset.crystals.properties
        if missing := [key for key in wanted if key not in known]:
            raise ValueError(
                f"data.target_condition and data.properties must be labels of the crystals, but {missing[0]} "
                f"is not in {name}; there are {', '.join(known) or 'none'}"
            )
    return splits


def _load_fidelities(
    config: DataConfig,
) -> tuple[dict[str, CrystalDataset], dict[str, FidelityCounts]]:
    from latentite.data.fidelities import read_fidelity

    parts = {}
    for name, fidelity in config.fidelities.items():
        options = _options(config, numbers_only=True)
        # A label that was asked for must not be left out here because one of its cells cannot be read.
        asked = [
            fidelity.columns.get(key, key) for key in config.wanted_properties if key not in options.derived
        ]
        options = replace(
            options,
            properties=None if fidelity.properties is None else tuple(fidelity.properties),
            if_present=tuple(dict.fromkeys([*asked, *fidelity.columns.values()])),
        )
        part = read_fidelity(
            fidelity, name, options=options, cache_dir=config.cache_dir, workers=config.workers
        )
        splits = {
            key: _with_derived(_up_to(config.max_atoms, split, f"{name}, {key}"), options.derived)
            for key, split in part.splits.items()
        }
        parts[name] = replace(part, splits=splits)
    joint = join_fidelities(
        parts,
        properties=config.wanted_properties,
        fractions=config.split_fractions,
        split_by=config.split_by,
        seed=config.split_seed,
    )
    for name, counts in joint.counts.items():
        log.info("fidelity %s: %s", name, counts)
    return joint.splits, joint.counts


def _options(config: DataConfig, *, numbers_only: bool) -> BuildOptions:
    """Options of reading splits: the labels that are asked for, or all columns of numbers."""
    from latentite.data.properties import DERIVED
    from latentite.data.readers.checks import Limits

    wanted = config.wanted_properties
    return BuildOptions(
        limits=Limits(max_atoms=config.max_atoms),
        properties=None if numbers_only else tuple(name for name in wanted if name not in DERIVED),
        derived=tuple(name for name in wanted if name in DERIVED),
    )


def _with_derived(dataset: CrystalDataset, names: Sequence[str]) -> CrystalDataset:
    """With the numbers that can be computed from the crystals where a packed folder came without them."""
    from latentite.data.dataset import content_hash
    from latentite.data.properties import derive

    labels = dict(dataset.crystals.properties)
    for name in names:
        if name not in labels and isinstance(values := derive(name, dataset.crystals), Tensor):
            labels[name] = values
    if labels.keys() == dataset.crystals.properties.keys():
        return dataset
    crystals = dataset.crystals.with_properties(labels)
    digest = content_hash(crystals, dataset.ids, dataset.categories)
    return replace(dataset, crystals=crystals, content_hash=digest)


def _up_to(max_atoms: int, dataset: CrystalDataset, name: str) -> CrystalDataset:
    """The crystals of at most so many atoms: a folder that is built already has the limits of its build.

    Raises:
        ValueError: when none of them is that small.
    """
    kept = (dataset.crystals.num_atoms <= max_atoms).nonzero().flatten()
    left_out = len(dataset) - len(kept)
    if not left_out:
        return dataset
    if not len(kept):
        raise ValueError(
            f"data.max_atoms must be at least {int(dataset.crystals.num_atoms.min())}, the smallest crystal of the "
            f"split {name}, got {max_atoms}"
        )
    log.warning(
        "%s: %d of %d crystals have more than data.max_atoms=%d atoms (up to %d) and are left out",
        name,
        left_out,
        len(dataset),
        max_atoms,
        int(dataset.crystals.num_atoms.max()),
    )
    return replace(
        dataset,
        crystals=dataset.crystals.select(kept),
        ids=tuple(dataset.ids[position] for position in kept.tolist()),
        content_hash=f"{dataset.content_hash}[<={max_atoms}]",
    )


def _first(dataset: CrystalDataset, count: int) -> CrystalDataset:
    if len(dataset) <= count:
        return dataset
    return replace(
        dataset,
        crystals=dataset.crystals.select(torch.arange(count)),
        ids=dataset.ids[:count],
        content_hash=f"{dataset.content_hash}[:{count}]",
    )
