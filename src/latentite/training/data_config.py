"""`DataConfig`: the settings `data.*` of every training stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from latentite.data.fidelities import FidelityConfig, SplitBy
from latentite.data.options import DEFAULT_FRACTIONS
from latentite.data.splits import check_fractions
from latentite.training.conditions import FROM_CRYSTAL

DEFAULT_BATCH_ATOMS = 4096


class BatchBy(StrEnum):
    """What limits a batch."""

    CRYSTALS = "crystals"
    """`batch_size` crystals; where `batch_atoms` is given, also so many atoms."""
    ATOMS = "atoms"
    """`batch_atoms` atoms (4096 where null), however many crystals that are."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which crystals, and how they are cut into batches."""

    name: str = "mp_20"
    """A named data set (`latentite.data.sources`); where `data_dir` is given, only a label."""
    data_dir: Path | None = None
    """Folder made by `latentite data build`, or one with train/val/test files."""
    cache_dir: Path | None = None
    """Where packed splits are kept; null takes `LATENTITE_CACHE_DIR`, else `~/.cache/latentite`."""
    batch_size: int = 256
    """Crystals per step, over all processes together; with `batch_atoms` the most that a batch may hold."""
    batch_atoms: int | None = None
    """If given, batches are sized by atoms: at most this many per step."""
    batch_by: BatchBy = BatchBy.CRYSTALS
    eval_batch_size: int | None = None
    """Crystals per batch of validation and test; null takes `batch_size`."""
    bucketed: bool = True
    """Batches of crystals of similar size, so that little is padded."""
    max_atoms: int = 20
    """Crystals with more atoms are rejected when a split is built, and left out (counted, said) of one that is."""
    max_crystals: int | None = None
    """Use only the first so many crystals of each split (for trials)."""
    seed: int | None = None
    """Of the order of the crystals; null takes the run's seed, or 0 where there is no run."""
    target_condition: list[str] | str | None = None
    """What the diffusion stage is conditioned on: labels, which are loaded with the crystals, and names such as
    `composition` that are read off the crystals themselves (`training/conditions.py`)."""
    properties: list[str] = field(default_factory=list)
    """Further properties to load."""
    atom_features_path: Path | None = None
    """Folder with a foundation model's features of every atom, one file per split (`write_atom_features`)."""
    fidelities: dict[str, FidelityConfig] = field(default_factory=dict)
    """Labels of several levels of theory, by name, in place of one data set (`latentite.data.fidelities`)."""
    reference_fidelity: str | None = None
    """The one that the others are compared with; null takes the first."""
    split_by: SplitBy = SplitBy.ID
    """What makes rows of two fidelities the same material, which is then in one split only."""
    split_fractions: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_FRACTIONS))
    """Of the materials that no fidelity's source has given a split."""
    split_seed: int = 0
    """Of that division; not the run's seed, so that runs of several seeds have one test split."""
    workers: int | None = None
    """Processes that build a split; null takes all cores."""

    def __post_init__(self) -> None:
        if not self.name and self.data_dir is None:
            raise ValueError("name must not be empty where data_dir is not given")
        for key in ("batch_size", "max_atoms"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        for key in ("batch_atoms", "eval_batch_size", "max_crystals", "workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1 or null, got {value}")
        if self.batch_atoms is not None and self.batch_atoms < self.max_atoms:
            raise ValueError(
                f"batch_atoms must be at least max_atoms ({self.max_atoms}), got {self.batch_atoms}"
            )
        for key in ("seed", "split_seed"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"{key} must be 0 or more, got {getattr(self, key)}")
        self._check_fidelities()
        if self.data_dir is not None and not self.data_dir.expanduser().is_dir():
            raise ValueError(
                f"data_dir must be an existing folder, got {str(self.data_dir)!r}; "
                "make one with `latentite data build`, or leave it out to use a named data set"
            )

        if self.atom_features_path is not None and not self.atom_features_path.is_dir():
            raise ValueError(
                f"atom_features_path must be an existing folder, got {str(self.atom_features_path)!r}"
            )

    def _check_fidelities(self) -> None:
        check_fractions(self.split_fractions)
        names = list(self.fidelities)
        if self.reference_fidelity is not None and self.reference_fidelity not in names:
            raise ValueError(
                f"reference_fidelity must be one of data.fidelities ({', '.join(names) or 'none are given'}), "
                f"got {self.reference_fidelity!r}"
            )
        if names and not any(weight > 0 for weight in self.fidelity_weights or (1.0,)):
            raise ValueError("fidelities must not all have the weight 0")

    @property
    def reference(self) -> str | None:
        """Name of the reference fidelity; None without fidelities."""
        return self.reference_fidelity or next(iter(self.fidelities), None)

    @property
    def fidelity_weights(self) -> tuple[float, ...] | None:
        """One per fidelity; None where none is given, and every row comes once per epoch."""
        weights = [fidelity.weight for fidelity in self.fidelities.values()]
        if all(weight is None for weight in weights):
            return None
        return tuple(1.0 if weight is None else weight for weight in weights)

    @property
    def conditions(self) -> list[str]:
        """`target_condition` as a list."""
        if isinstance(self.target_condition, str):
            return [self.target_condition]
        return list(self.target_condition or [])

    @property
    def wanted_properties(self) -> tuple[str, ...]:
        """Every property to load, each once, conditions first; what is read off the crystal itself is none."""
        labels = [name for name in self.conditions if name not in FROM_CRYSTAL]
        return tuple(dict.fromkeys([*labels, *self.properties]))
