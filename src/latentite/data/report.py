"""What a build leaves beside its splits: a summary, `dataset.json`, and `rejected.csv`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentite import __version__
from latentite.base.tables import write_csv
from latentite.data.canonical import CANONICAL_VERSION
from latentite.data.dataset import CrystalDataset
from latentite.data.readers.records import Rejection


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSummary:
    """What `build_dataset` did; `num_in = num_accepted + num_rejected`."""

    out_dir: Path
    num_in: int
    num_accepted: int
    num_rejected: int
    counts: dict[str, int]
    """Crystals per split."""
    group_by: str
    reasons: dict[str, int]
    """Rejections by the beginning of their reason, most frequent first."""
    shared_formulas: int
    """Reduced formulas of the test split that the train split has too."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns of the source that are no property, and why."""
    remarks: tuple[str, ...] = ()
    """Cells that were taken as missing, cleaned or worth a look."""


def report(
    summary: BuildSummary, splits: Mapping[str, CrystalDataset], request: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `dataset.json`; `request` is what the user asked for."""
    details = {}
    for split, dataset in splits.items():
        labels = dataset.crystals.properties
        details[split] = {
            "file": f"{split}.safetensors",
            "crystals": len(dataset),
            "atoms": dataset.crystals.total_atoms,
            "content_hash": dataset.content_hash,
            "missing_labels": {name: int(values.isnan().sum()) for name, values in labels.items()},
        }
    first = next(iter(splits.values()))
    return {
        "format": 1,
        "latentite": __version__,
        "canonical_version": CANONICAL_VERSION,
        **request,
        "group_by": summary.group_by,
        "num_in": summary.num_in,
        "num_accepted": summary.num_accepted,
        "num_rejected": summary.num_rejected,
        "rejection_reasons": summary.reasons,
        "formulas_of_test_also_in_train": summary.shared_formulas,
        "splits": details,
        "properties": list(first.crystals.properties),
        "categories": {name: list(values) for name, values in first.categories.items()},
        "columns_left_out": summary.left_out,
        "remarks": list(summary.remarks),
    }


def write_rejections(path: Path, rejections: Sequence[Rejection]) -> None:
    """A CSV with source, row, id and reason; only the header when nothing was rejected."""
    rows = ([item.source, item.row, item.id, item.reason] for item in rejections)
    write_csv(path, ["source", "row", "id", "reason"], rows)


def count_reasons(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Rejections by kind of reason (its text without numbers and details), most frequent first."""
    kinds = Counter(_kind(rejection.reason) for rejection in rejections)
    return dict(kinds.most_common())


def _kind(reason: str) -> str:
    if "apart, closer than" in reason:
        return "atoms too close"
    if "more than the limit" in reason:
        return "more atoms than the limit"
    return reason.split(":")[0].split(" (")[0]
