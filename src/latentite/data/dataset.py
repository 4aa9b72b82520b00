"""`CrystalDataset`: a whole split in memory, with the names that tensors cannot hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentite.crystal import CrystalBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CrystalDataset:
    """One split: all its crystals packed on the CPU, float32.

    Raises:
        ValueError: when the number of ids and of crystals differ.
    """

    crystals: CrystalBatch
    """Numeric properties included, NaN where a label is missing."""
    ids: tuple[str, ...]
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each categorical property the names behind its integer codes."""
    content_hash: str
    """sha256 that changes with any row, option or version of the canonical form."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.crystals):
            raise ValueError(
                f"a dataset needs one id per crystal, got {len(self.ids)} ids for {len(self.crystals)}"
            )

    def __len__(self) -> int:
        return len(self.ids)
