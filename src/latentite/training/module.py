"""The Lightning module that all stages extend: seeded draws, the training step, the optimizer."""

from __future__ import annotations

from abc import abstractmethod
from enum import IntEnum
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig, augment, seeded_generator
from latentite.objectives.terms import LossTerms, global_loss
from latentite.training.datamodule import CrystalDataModule
from latentite.training.optim import OptimizerConfig, SchedulerConfig, configure


class Stream(IntEnum):
    """First part of the seed of each kind of draw, so that the streams never meet."""

    TRAIN = 1
    VALIDATION = 2
    STATISTICS = 3
    DROPOUT = 4
    ROLLOUT = 5
    STEPS = 6
    MINIBATCHES = 7


class StageModule(LightningModule):
    """Trains `network`. Every random draw is seeded by (seed, stream, epoch, batch, rank): resuming is exact."""

    network: nn.Module

    def __init__(
        self,
        *,
        seed: int,
        augmentation: AugmentationConfig,
        optimizer: OptimizerConfig,
        scheduler: SchedulerConfig,
    ) -> None:
        super().__init__()
        self.seed = seed
        self._augmentation = augmentation
        self._optimizer = optimizer
        self.scheduler_config = scheduler

    @abstractmethod
    def compile_network(self) -> None:
        """`torch.compile` the parts that gain from it, keeping all parameter names."""

    @abstractmethod
    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        """The objective of one batch, which it augments first (`self.augmented`)."""

    def augmented(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        """The batch as training sees it."""
        return augment(batch, self._augmentation, generator)

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor | None:
        """Compute the objective, log it."""
        generator = self.generator(Stream.TRAIN, self.current_epoch, batch_idx, self.global_rank)
        terms = self.training_terms(batch, generator)
        loss, values = global_loss(terms)
        total = values.pop("loss")
        logged = {f"train/{name}": value for name, value in values.items()}
        self.log_dict(logged, batch_size=len(batch), on_step=True, on_epoch=False)
        self.log("train/loss", total, batch_size=len(batch), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def configure_optimizers(self) -> Any:
        """As configured, over the parameters that require gradients."""
        return configure(
            self.parameters(),
            self._optimizer,
            self.scheduler_config,
            total_steps=self.trainer.estimated_stepping_batches,
            validate_every=self.trainer.check_val_every_n_epoch,
        )

    def generator(self, stream: Stream, epoch: int, batch: int, rank: int) -> torch.Generator:
        """The generator that owns one draw, on the module's device."""
        return seeded_generator(self.seed, int(stream), epoch, batch, rank, device=self.device)

    @property
    def datamodule(self) -> CrystalDataModule:
        """Of the run."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        assert isinstance(data, CrystalDataModule)
        return data


def freeze_parameters(network: nn.Module, prefixes: list[str], *, setting: str) -> None:
    """Let parameters stay as they are.

    Args:
        network: whose.
        prefixes: beginnings of their names.
        setting: where they are given, for the message.

    Raises:
        ValueError: when one fits nothing.
    """
    for prefix in prefixes:
        named = [parameter for name, parameter in network.named_parameters() if name.startswith(prefix)]
        if not named:
            parts = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"{setting} must hold beginnings of parameter names, got {prefix!r}; they begin with {parts}"
            )
        for parameter in named:
            parameter.requires_grad_(False)
