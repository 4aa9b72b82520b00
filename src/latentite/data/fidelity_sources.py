"""The rows of one fidelity, from wherever its config says, under our names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from latentite.data import cache
from latentite.data.build import WHOLE, BuildOptions, build_splits, split_files
from latentite.data.cache import content_hash
from latentite.data.dataset import CrystalDataset
from latentite.data.fidelities import FidelityConfig, FidelityPart
from latentite.data.labels import log_labels

log = logging.getLogger(__name__)


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
            dataset = cache.read_dataset(file)
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
