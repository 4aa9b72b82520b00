"""`CrystalDataModule`: the splits of a data set in memory, served as `CrystalBatch` objects.

No worker processes: a split lies in memory as tensors, `data/sampler.py` says which crystals make a batch,
and `CrystalBatch.select` picks them out. Comes after `data/`; `training/fit.py` hands it to the trainer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from lightning.pytorch import LightningDataModule
from torch import Tensor

from latentite.data.atom_features import attach_features
from latentite.data.dataset import CrystalDataset
from latentite.data.sampler import BatchPlan, epoch_batches
from latentite.training.conditions import FROM_CRYSTAL

log = logging.getLogger(__name__)


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
    eval_batch_size: int | None = None
    """Crystals per batch of validation and test; null takes `batch_size`."""
    bucketed: bool = True
    """Batches of crystals of similar size, so that little is padded."""
    max_atoms: int = 20
    """Crystals with more atoms are rejected when the split is built."""
    max_crystals: int | None = None
    """Use only the first so many crystals of each split (for trials)."""
    seed: int = 0
    """Of the order of the crystals."""
    target_condition: list[str] | str | None = None
    """What the diffusion stage is conditioned on: labels, which are loaded with the crystals, and names such as
    `composition` that are read off the crystals themselves (`training/conditions.py`)."""
    properties: list[str] = field(default_factory=list)
    """Further properties to load."""
    atom_features_path: Path | None = None
    """Folder with a foundation model's features of every atom, one file per split (`write_atom_features`)."""
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
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        if self.data_dir is not None and not self.data_dir.expanduser().is_dir():
            raise ValueError(
                f"data_dir must be an existing folder, got {str(self.data_dir)!r}; "
                "make one with `latentite data build`, or leave it out to use a named data set"
            )

        if self.atom_features_path is not None and not self.atom_features_path.is_dir():
            raise ValueError(
                f"atom_features_path must be an existing folder, got {str(self.atom_features_path)!r}"
            )

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


class BatchSource(Protocol):
    """What batches are taken from: a whole split as a `CrystalBatch`, or something that stands in for it."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal, on the CPU."""
        ...

    def select(self, index: Int[Tensor, " selected"]) -> Any:
        """The batch of the crystals at these positions."""
        ...


class BatchLoader:
    """The batches of a split, epoch by epoch; what Lightning takes for a data loader.

    The order is a function of (seed, epoch), so its state is two numbers. Lightning sets the epoch through
    `sampler.set_epoch`, and saves and restores `state_dict`.
    """

    batch_sampler = None
    """Lightning asks for it."""

    def __init__(self, source: BatchSource, plan: BatchPlan, *, rank: int = 0, world_size: int = 1) -> None:
        self.source = source
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._next = 0
        self._resume: tuple[int, int] | None = None
        self._planned: tuple[int, list[Tensor]] | None = None

    @property
    def sampler(self) -> BatchLoader:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch from the next iteration on."""
        self._epoch = epoch

    def batches(self, epoch: int) -> list[Tensor]:
        """Positions of the crystals of each batch of that epoch, for this process."""
        if self._planned is None or self._planned[0] != epoch:
            sizes = self.source.num_atoms
            plan = epoch_batches(sizes, self.plan, epoch=epoch, rank=self.rank, world_size=self.world_size)
            self._planned = (epoch, plan)
        return self._planned[1]

    def __len__(self) -> int:
        return len(self.batches(self._epoch))

    def __iter__(self) -> Iterator[Any]:
        # A generator: its body runs at the first batch, when Lightning has set the epoch.
        epoch = self._epoch
        start = self._resume[1] if self._resume is not None and self._resume[0] == epoch else 0
        self._resume = None
        for position, index in enumerate(self.batches(epoch)):
            if position >= start:
                self._next = position + 1
                yield self.source.select(index)

    def state_dict(self) -> dict[str, int]:
        """Where the order stands."""
        return {"epoch": self._epoch, "next_batch": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on there, if the next iteration is of the same epoch."""
        self._resume = (int(state["epoch"]), int(state["next_batch"]))


class CrystalDataModule(LightningDataModule):
    """Loads the splits once and serves them in batches."""

    def __init__(self, config: DataConfig, *, splits: Mapping[str, CrystalDataset] | None = None) -> None:
        """Keep the config; nothing is read before `setup`.

        Args:
            config: which crystals and how.
            splits: ready-made splits by name (`train`, `val`, `test`) instead of those that the config names.
        """
        super().__init__()
        self.config = config
        self._splits: dict[str, CrystalDataset] | None = None if splits is None else dict(splits)
        self._train_loader: BatchLoader | None = None
        self._position: dict[str, int] | None = None
        self._train_source: BatchSource | None = None

    @property
    def splits(self) -> dict[str, CrystalDataset]:
        """The loaded splits by name."""
        if self._splits is None:
            self._splits = load(self.config)
        return self._splits

    def prepare_data(self) -> None:
        """Build or download what is missing, once per machine; the other processes then find it cached."""
        _ = self.splits

    def setup(self, stage: str) -> None:
        """Load the splits and check that the one needed is there.

        Raises:
            ValueError: if there is nothing to train on.
        """
        if stage == "fit" and len(self.splits.get("train", ())) == 0:
            raise ValueError(
                f"the training split of {self.config.name} must hold at least one crystal, got none; "
                "see rejected.csv of the build, or data.max_atoms"
            )

    def train_dataloader(self) -> BatchLoader:
        """Shuffled, this process's share of every batch."""
        config = self.config
        plan = BatchPlan(
            batch_size=config.batch_size,
            batch_atoms=config.batch_atoms,
            bucketed=config.bucketed,
            seed=config.seed,
        )
        self._train_loader = self._loader(self._train_source or self.splits["train"].crystals, plan)
        if self._position is not None:
            self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def serve_train_from(self, source: BatchSource | None) -> None:
        """Take training batches from something with the same crystals in it; None: from the crystals again."""
        self._train_source = source
        if self._train_loader is not None:
            self._train_loader.source = source or self.splits["train"].crystals

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data.

        Lightning saves the loader's own state too, but forgets to restore it when the length of the run was
        asked for before (as schedules do).
        """
        return {} if self._train_loader is None else {"train": self._train_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there; the loader may or may not exist already."""
        self._position = state_dict.get("train")
        if self._train_loader is not None and self._position is not None:
            self._train_loader.load_state_dict(self._position)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """In a fixed order; an empty list (no validation) where there is no such split."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> BatchLoader | list[Any]:
        """In a fixed order; an empty list where there is no such split."""
        return self._evaluation_loader("test")

    def statistics(self) -> dict[str, Any]:
        """What a checkpoint says of its data: plain values only."""
        splits = {}
        for name, dataset in self.splits.items():
            counts = torch.bincount(dataset.crystals.num_atoms)
            splits[name] = {
                "content_hash": dataset.content_hash,
                "num_crystals": len(dataset),
                "num_atoms_histogram": counts.tolist(),
            }
        train = self.splits.get("train")
        categories = {} if train is None else {key: list(names) for key, names in train.categories.items()}
        properties = [] if train is None else list(train.crystals.properties)
        return {
            "name": self.config.name,
            "splits": splits,
            "categories": categories,
            "properties": properties,
        }

    def _evaluation_loader(self, split: str) -> BatchLoader | list[Any]:
        if len(self.splits.get(split, ())) == 0:
            return []
        size = self.config.eval_batch_size or self.config.batch_size
        plan = BatchPlan(
            batch_size=size, batch_atoms=self.config.batch_atoms, bucketed=self.config.bucketed, shuffle=False
        )
        return self._loader(self.splits[split].crystals, plan)

    def _loader(self, source: BatchSource, plan: BatchPlan) -> BatchLoader:
        rank = 0 if self.trainer is None else self.trainer.global_rank
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return BatchLoader(source, plan, rank=rank, world_size=world_size)


def load(config: DataConfig) -> dict[str, CrystalDataset]:
    """The splits that a config names: from a folder, or a named data set (made or fetched where missing).

    Raises:
        ValueError: if a split cannot be used, or a property that was asked for is not there.
    """
    from latentite.data.build import BuildOptions, load_splits
    from latentite.data.checks import Limits
    from latentite.data.properties import DERIVED

    wanted = config.wanted_properties
    options = BuildOptions(
        limits=Limits(max_atoms=config.max_atoms),
        properties=tuple(name for name in wanted if name not in DERIVED) if wanted else None,
        derived=tuple(name for name in wanted if name in DERIVED),
    )
    splits = load_splits(_folder(config), options=options, cache_dir=config.cache_dir, workers=config.workers)
    splits = {name: _with_derived(dataset, options.derived) for name, dataset in splits.items()}
    for name, dataset in splits.items():
        known = dataset.crystals.properties
        if missing := [key for key in wanted if key not in known]:
            raise ValueError(
                f"data.target_condition and data.properties must be labels of the crystals, but {missing[0]} "
                f"is not in {name}; there are {', '.join(known) or 'none'}"
            )
    if config.atom_features_path is not None:
        features = config.atom_features_path
        splits = {
            name: attach_features(dataset, features / f"{name}.safetensors")
            for name, dataset in splits.items()
        }
    if config.max_crystals is not None:
        splits = {name: _first(dataset, config.max_crystals) for name, dataset in splits.items()}
    for name, dataset in splits.items():
        log.info("%s: %d crystals, %d atoms", name, len(dataset), dataset.crystals.total_atoms)
    return splits


def _folder(config: DataConfig) -> Path:
    """Where the splits lie: `data_dir` itself, a folder in it of that name, or wherever the name is found."""
    from latentite.data.build import split_files
    from latentite.data.sources import resolve

    if config.data_dir is None:
        return resolve(config.name)
    inside = config.data_dir / config.name
    return inside if not split_files(config.data_dir) and inside.is_dir() else config.data_dir


def _with_derived(dataset: CrystalDataset, names: Sequence[str]) -> CrystalDataset:
    """With the numbers that can be computed from the crystals where a packed folder came without them."""
    from latentite.data.cache import content_hash
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


def _first(dataset: CrystalDataset, count: int) -> CrystalDataset:
    if len(dataset) <= count:
        return dataset
    return replace(
        dataset,
        crystals=dataset.crystals.select(torch.arange(count)),
        ids=dataset.ids[:count],
        content_hash=f"{dataset.content_hash}[:{count}]",
    )
