"""`OrbitDataModule`: the splits of a data set by orbits, served as `GPTBatch` objects.

Crystals are described once (`symmetry/dataset.py`, which keeps them in the cache). Those without a description are left
out, counted and said; what remains of a split is what its batches, its card and its hash speak of.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from latentite.checkpoint import DataCard
from latentite.checkpoint.record import OrbitCard
from latentite.data.dataset import CrystalDataset
from latentite.elements import symbol_of
from latentite.nn.gpt.network import SPACE_GROUP, GPTMode, limits_of
from latentite.symmetry.dataset import EncodedDataset, encode_dataset, encode_dataset_p1
from latentite.symmetry.orbits import OrbitBatch
from latentite.training.datamodule import BatchSource, CrystalDataModule
from latentite.training.settings import DataConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitEncoding:
    """Settings of the description of crystals."""

    mode: GPTMode
    symprec: float
    """Å."""
    fallback: float | None
    """Å."""

    def __str__(self) -> str:
        return "p1" if self.mode is GPTMode.P1 else f"orbits {self.symprec:g} {self.fallback or 0:g}"

    def encode(self, dataset: CrystalDataset, config: DataConfig) -> EncodedDataset:
        """A split by orbits."""
        if self.mode is GPTMode.P1:
            return encode_dataset_p1(dataset, workers=config.workers, cache_dir=config.cache_dir)
        return encode_dataset(
            dataset,
            symprec=self.symprec,
            fallback=self.fallback,
            workers=config.workers,
            cache_dir=config.cache_dir,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTBatch:
    """A batch of crystals by orbits."""

    orbits: OrbitBatch
    reductions: Int[Tensor, "crystal 3 3"]
    """Matrices that reduce the primitive lattices."""

    def __len__(self) -> int:
        return len(self.orbits)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> GPTBatch:
        """The same batch on another device."""
        return GPTBatch(
            orbits=self.orbits.to(device), reductions=self.reductions.to(device, non_blocking=non_blocking)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitSource:
    """A whole split as the source of batches."""

    orbits: OrbitBatch
    reductions: Int[Tensor, "crystal 3 3"]
    num_atoms: Int[Tensor, " crystal"]
    """Atoms of each primitive cell."""

    def select(self, index: Int[Tensor, " selected"]) -> GPTBatch:
        """The batch of the crystals at these positions."""
        return GPTBatch(orbits=self.orbits.select(index), reductions=self.reductions[index])


class OrbitDataModule(CrystalDataModule):
    """Loads and describes the splits once and serves them in batches."""

    window = 16

    def __init__(
        self,
        config: DataConfig,
        encoding: OrbitEncoding,
        *,
        splits: Mapping[str, CrystalDataset] | None = None,
    ) -> None:
        """Keep the settings; nothing is read before `setup`.

        Args:
            config: which crystals, and how they are divided into batches.
            encoding: how they are described.
            splits: ready-made splits by name instead of those that the config names.
        """
        # The space group is that of the description: no label is needed for it.
        labels = [name for name in config.conditions if name != SPACE_GROUP]
        super().__init__(replace(config, target_condition=labels), splits=splits)
        self.encoding = encoding
        self._encoded: dict[str, EncodedDataset] = {}
        self._sources: dict[str, OrbitSource] = {}

    @property
    def splits(self) -> dict[str, CrystalDataset]:
        """The loaded splits by name, without the crystals that have no description."""
        whole = super().splits
        if not self._encoded:
            self._encoded = {
                name: self.encoding.encode(dataset, self.config) for name, dataset in whole.items()
            }
            self._splits = {name: self._described(dataset, name) for name, dataset in whole.items()}
            for name, encoded in self._encoded.items():
                log.info(
                    "%s: %d crystals described by %d orbits (%s), %d rejected",
                    name,
                    len(encoded),
                    len(encoded.orbits.position),
                    self.encoding,
                    len(encoded.rejections),
                )
        return super().splits

    def orbits(self, split: str) -> OrbitBatch:
        """The crystals of a split by orbits."""
        _ = self.splits
        return self._encoded[split].orbits

    def source(self, split: str) -> BatchSource:
        """The source of the batches of a split."""
        if split not in self._sources:
            orbits = self.orbits(split)
            self._sources[split] = OrbitSource(
                orbits=orbits, reductions=self._encoded[split].reductions, num_atoms=orbits.num_atoms
            )
        return self._sources[split]

    def sort_key(self, split: str) -> Int[Tensor, " crystal"] | None:
        """By orbits, which are tokens, then by atoms, which are neighbours."""
        orbits = self.orbits(split)
        num_atoms = orbits.num_atoms
        return orbits.num_orbits * (int(num_atoms.max()) + 1) + num_atoms

    def data_card(self) -> DataCard:
        """The data card of a checkpoint: sizes are those of primitive cells."""
        card = super().data_card()
        splits = {
            name: replace(
                split,
                num_atoms_histogram=torch.bincount(self.orbits(name).num_atoms).tolist(),
                num_rejected=len(self._encoded[name].rejections),
            )
            for name, split in card.splits.items()
        }
        train = self.orbits("train")
        limits = limits_of(train)
        return replace(
            card,
            splits=splits,
            elements=[symbol_of(number) for number in train.element.unique().tolist()],
            orbits=OrbitCard(
                mode=self.encoding.mode.value,
                symprec=None if self.encoding.mode is GPTMode.P1 else self.encoding.symprec,
                fallback=None if self.encoding.mode is GPTMode.P1 else self.encoding.fallback,
                max_orbits=limits.max_orbits,
                max_elements=limits.max_elements,
            ),
        )

    def _described(self, dataset: CrystalDataset, name: str) -> CrystalDataset:
        rows = self._encoded[name].rows
        return replace(
            dataset,
            crystals=dataset.crystals.select(rows),
            ids=tuple(dataset.ids[row] for row in rows.tolist()),
            content_hash=f"{dataset.content_hash}[{self.encoding}]",
        )
