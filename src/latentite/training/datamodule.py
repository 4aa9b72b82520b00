"""`CrystalDataModule`: the splits of a data set in memory, served as `CrystalBatch` objects.

No worker processes: a split lies in memory as tensors, `data/sampler.py` says which crystals make a batch, and
`CrystalBatch.select` picks them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import torch
from jaxtyping import Int
from lightning.pytorch import LightningDataModule
from torch import Tensor

from latentite.checkpoint import DataCard, FidelityCard, SplitCard
from latentite.crystal import FIDELITY
from latentite.data.dataset import CrystalDataset
from latentite.data.fidelities import FidelityCounts
from latentite.data.sampler import BatchPlan, WeightedDraw, epoch_batches
from latentite.training.data_loading import load, load_data
from latentite.training.settings import DEFAULT_BATCH_ATOMS, BatchBy, DataConfig

__all__ = ["BatchLoader", "BatchSource", "CrystalDataModule", "DataConfig", "load"]


class BatchSource(Protocol):
    """A source of batches: a whole split as a `CrystalBatch`, or something that stands in for it."""

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

    def __init__(
        self,
        source: BatchSource,
        plan: BatchPlan,
        *,
        rank: int = 0,
        world_size: int = 1,
        draw: WeightedDraw | None = None,
        sort_by: Int[Tensor, " crystal"] | None = None,
    ) -> None:
        self.source = source
        self.plan = plan
        self.draw = draw
        self.sort_by = sort_by
        self.rank = rank
        self.world_size = world_size
        self._epoch = 0
        self._next = 0
        self._resume: tuple[int, int] | None = None
        self._planned: tuple[int, list[Tensor]] | None = None

    @property
    def sampler(self) -> BatchLoader:
        """The object on which Lightning calls `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Take the order of that epoch from the next iteration on."""
        self._epoch = epoch

    def batches(self, epoch: int) -> list[Tensor]:
        """Positions of the crystals of each batch of that epoch, for this process."""
        if self._planned is None or self._planned[0] != epoch:
            plan = epoch_batches(
                self.source.num_atoms,
                self.plan,
                epoch=epoch,
                rank=self.rank,
                world_size=self.world_size,
                draw=self.draw,
                sort_by=self.sort_by,
            )
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
        """Position in the order of batches."""
        return {"epoch": self._epoch, "next_batch": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on there, if the next iteration is of the same epoch."""
        self._resume = (int(state["epoch"]), int(state["next_batch"]))


class CrystalDataModule(LightningDataModule):
    """Loads the splits once and serves them in batches."""

    window: int | None = None
    """`BatchPlan.window` of training."""

    def __init__(self, config: DataConfig, *, splits: Mapping[str, CrystalDataset] | None = None) -> None:
        """Keep the config; nothing is read before `setup`.

        Args:
            config: which crystals and how.
            splits: ready-made splits by name (`train`, `val`, `test`) instead of those that the config names.
        """
        super().__init__()
        self.config = config
        self._splits: dict[str, CrystalDataset] | None = None if splits is None else dict(splits)
        self._counts: dict[str, FidelityCounts] = {}
        self._train_loader: BatchLoader | None = None
        self._position: dict[str, int] | None = None
        self._train_source: BatchSource | None = None

    @property
    def splits(self) -> dict[str, CrystalDataset]:
        """The loaded splits by name."""
        if self._splits is None:
            data = load_data(self.config)
            self._splits, self._counts = data.splits, data.counts
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
        crystals = self.splits["train"].crystals
        draw = None
        if config.fidelity_weights is not None:
            group = crystals.properties[FIDELITY].long()
            draw = WeightedDraw(group=group, weights=config.fidelity_weights, seed=config.seed or 0)
        plan = self._plan(config.batch_size, shuffle=True)
        self._train_loader = self._loader("train", plan, draw)
        if self._position is not None:
            self._train_loader.load_state_dict(self._position)
        return self._train_loader

    def serve_train_from(self, source: BatchSource | None) -> None:
        """Take training batches from something with the same crystals in it; None: from the crystals again."""
        self._train_source = source
        if self._train_loader is not None:
            self._train_loader.source = source or self.source("train")

    def source(self, split: str) -> BatchSource:
        """The source of the batches of a split, unless `serve_train_from` named another."""
        return self.splits[split].crystals

    def sort_key(self, split: str) -> Int[Tensor, " crystal"] | None:
        """Size by which the crystals of a split are bucketed; None for the number of atoms."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Position of training in the data.

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

    def data_card(self) -> DataCard:
        """The data card of a checkpoint."""
        splits = {
            name: SplitCard(
                content_hash=dataset.content_hash,
                num_crystals=len(dataset),
                num_atoms_histogram=torch.bincount(dataset.crystals.num_atoms).tolist(),
            )
            for name, dataset in self.splits.items()
        }
        train = self.splits.get("train")
        fidelities = {
            name: FidelityCard(**asdict(counts), dispersion=self.config.fidelities[name].dispersion)
            for name, counts in self._counts.items()
        }
        return DataCard(
            name=self.config.name,
            splits=splits,
            categories={} if train is None else {key: list(names) for key, names in train.categories.items()},
            properties=[] if train is None else list(train.crystals.properties),
            fidelities=fidelities,
            reference_fidelity=self.config.reference,
        )

    def _evaluation_loader(self, split: str) -> BatchLoader | list[Any]:
        if len(self.splits.get(split, ())) == 0:
            return []
        plan = self._plan(self.config.eval_batch_size or self.config.batch_size, shuffle=False)
        return self._loader(split, plan)

    def _plan(self, batch_size: int, *, shuffle: bool) -> BatchPlan:
        config = self.config
        by_atoms = config.batch_by is BatchBy.ATOMS
        return BatchPlan(
            # A crystal has at least one atom: so many crystals are no limit beside that of the atoms.
            batch_size=(config.batch_atoms or DEFAULT_BATCH_ATOMS) if by_atoms else batch_size,
            batch_atoms=config.batch_atoms or (DEFAULT_BATCH_ATOMS if by_atoms else None),
            bucketed=config.bucketed,
            shuffle=shuffle,
            seed=config.seed or 0 if shuffle else 0,
            window=self.window,
        )

    def _loader(self, split: str, plan: BatchPlan, draw: WeightedDraw | None = None) -> BatchLoader:
        source = (self._train_source if split == "train" else None) or self.source(split)
        rank = 0 if self.trainer is None else self.trainer.global_rank
        world_size = 1 if self.trainer is None else self.trainer.world_size
        return BatchLoader(
            source, plan, rank=rank, world_size=world_size, draw=draw, sort_by=self.sort_key(split)
        )
