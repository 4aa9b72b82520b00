"""Stage 4: the Lightning module that trains a property predictor on a VAE's encoder.

The maths is in `objectives/predictor.py`; `predictor_rows.py` measures a whole split.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentite.crystal import CrystalBatch
from latentite.models import load_predictor
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.objectives.predictor import labels_of, predictor_terms
from latentite.objectives.terms import LossTerms
from latentite.predictor.rows import (
    CachedInputs,
    FidelityDraws,
    SplitRows,
    draw_split,
    encode_inputs,
    fit_spread_scale,
    gather_rows,
    measure,
    report_run,
)
from latentite.predictor.settings import EncoderTraining, PredictorModuleConfig
from latentite.training.checkpointing import CheckpointCallback
from latentite.training.latent_cache import CachedBatch
from latentite.training.loggers import log_picture
from latentite.training.module import StageModule, Stream, freeze_parameters
from latentite.training.optim import configure

log = logging.getLogger(__name__)

SECONDS_BETWEEN_FIGURES = 60.0


class PredictorTrainingModule(StageModule):
    """Trains the heads of `network`, and as much of its encoder as configured."""

    network: PropertyPredictor

    def __init__(self, config: PredictorModuleConfig, network: PropertyPredictor, *, seed: int = 0) -> None:
        """Take a network with its statistics and its VAE's trained weights.

        Args:
            config: of the run.
            network: parameters that stay as they are require no gradients.
            seed: of all draws.
        """
        super().__init__(
            seed=seed,
            augmentation=config.augmentation,
            optimizer=config.optimizer,
            scheduler=config.scheduler,
        )
        self.config = config
        self.network = network
        self._cache: CachedInputs | None = None
        self._encoded: dict[int, PredictorInput] = {}
        """Inputs of the heads for each batch of validation, where the encoder does not change."""
        self._rows: list[SplitRows] = []
        self._draws: FidelityDraws | None = None
        self._first_epoch = 0
        self._best_loss, self._drawn = float("inf"), 0.0
        self.report: dict[str, float] = {}
        """What the best weights reach on validation and test; filled at the end."""

    def compile_network(self) -> None:
        """Compile the encoder's trunk in place; names of parameters stay as they are."""
        trunk = getattr(self.network.vae.encoder, "transformer", None)
        if isinstance(trunk, nn.Module):
            trunk.compile(dynamic=True)

    def configure_optimizers(self) -> Any:
        """As configured; the encoder's rate is a share of that of the heads."""
        return configure(
            self.parameters(),
            self.config.optimizer,
            self.config.scheduler,
            total_steps=self.trainer.estimated_stepping_batches,
            validate_every=self.trainer.check_val_every_n_epoch,
            slow=list(self.network.vae.parameters()),
            slow_ratio=self.config.encoder_lr_ratio,
        )

    def on_fit_start(self) -> None:
        """Encode the training set where features are cached, and start to count draws."""
        self._cache = None
        self._encoded.clear()
        if self.config.uses_cache:
            crystals = self.datamodule.splits["train"].crystals
            start = time.monotonic()
            with self.trainer.precision_plugin.forward_context():
                self._cache = encode_inputs(self.network.eval(), crystals)
            log.info("encoded %d crystals in %.1f s", len(crystals), time.monotonic() - start)
            self.network.train()
        self.datamodule.serve_train_from(self._cache)
        self._draws = FidelityDraws.of(self.datamodule, self.device)
        self._first_epoch = self.current_epoch

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == self._first_epoch:
            self._log_draws()

    def on_train_end(self) -> None:
        self._log_draws()

    def _log_draws(self) -> None:
        assert self._draws is not None
        if line := self._draws.describe():
            log.info(line)

    def on_fit_end(self) -> None:
        self._cache = None
        self._encoded.clear()
        self.datamodule.serve_train_from(None)
        if self.trainer.is_global_zero:
            self._report()

    def _report(self) -> None:
        """Measure the checkpoint that the run recommends: its best, else its last."""
        kept = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, CheckpointCallback)]
        path = kept[0].best_path or kept[0].last_path
        network = load_predictor(path).network
        folder = Path(self.trainer.default_root_dir)
        self.report, figures = report_run(
            network.to(self.device), self.datamodule.splits, folder, self.config.loss, checkpoint=path.name
        )
        for logger in self.trainer.loggers:
            logger.log_metrics(
                {f"best_{n}": v for n, v in self.report.items()}, step=self.trainer.global_step
            )
        for figure in figures:
            log_picture(self.trainer, figure, figure.stem)
        shown = [f"{n} {v:.4g}" for n, v in self.report.items() if n.endswith(("_mae", "_r2", "_accuracy"))]
        log.info("%s: %s", path.name, "  ".join(shown))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout knows torch's own generator only: it is seeded anew in each step, so that resuming is exact.
        draws = self.generator(Stream.DROPOUT, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(draws.initial_seed())

    def training_terms(self, batch: CrystalBatch | CachedBatch, generator: torch.Generator) -> LossTerms:
        if isinstance(batch, CachedBatch):
            assert self._cache is not None
            inputs, labels = self._cache.batch(batch)
        else:
            inputs = self.network.prepare(self.augmented(batch, generator))
            labels = labels_of(self.network.config, batch.properties)
        if self._draws is not None:
            self._draws.add(inputs.fidelity)
        return predictor_terms(self.network, inputs, self.network.outputs(inputs), labels, self.config.loss)

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """Only predict: metrics are of the whole split."""
        inputs = self._encoded.get(batch_idx)
        if inputs is None:
            inputs = self.network.prepare(batch)
            if self.config.uses_cache:
                self._encoded[batch_idx] = inputs
        labels = labels_of(self.network.config, batch.properties)
        self._rows.append(SplitRows.of(self.network.outputs(inputs), labels, inputs))

    def on_validation_epoch_end(self) -> None:
        """Loss, errors per target and fidelity, and how far the spread of an ensemble must be stretched."""
        if not self._rows:
            return
        rows = gather_rows(SplitRows.concatenate(self._rows)).to(self.device)
        self._rows.clear()
        fit_spread_scale(self.network, rows)
        metrics = measure(self.network, rows, self.config.loss)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        if metrics["loss"] < self._best_loss and not self.trainer.sanity_checking:
            self._best_loss = metrics["loss"]
            self._draw_best(rows)

    def _draw_best(self, rows: SplitRows) -> None:
        """Figures of the best validation so far, at most once a minute; the end of the run draws the last one."""
        if self.trainer.is_global_zero and time.monotonic() - self._drawn > SECONDS_BETWEEN_FIGURES:
            self._drawn = time.monotonic()
            for figure in draw_split(self.network, rows, Path(self.trainer.default_root_dir), "val"):
                log_picture(self.trainer, figure, figure.stem)


def choose_trained(network: PropertyPredictor, config: PredictorModuleConfig) -> None:
    """Say which parameters require gradients.

    Raises:
        ValueError: when the encoder has no such layers, or a name of `freeze` fits nothing.
    """
    network.requires_grad_(True)
    network.vae.requires_grad_(False)
    for part in _trained_parts(network, config):
        part.requires_grad_(True)
    freeze_parameters(network, config.freeze, setting="predictor_module.freeze")


def _trained_parts(network: PropertyPredictor, config: PredictorModuleConfig) -> Iterator[nn.Module]:
    if config.encoder is EncoderTraining.FROZEN:
        return
    encoder = network.vae.encoder
    yield network.vae.quant_conv
    if config.encoder is EncoderTraining.FULL:
        yield encoder
        return
    trunk = getattr(encoder, "transformer", encoder)  # CSPNet has no part of that name
    layers, norm = trunk.layers, trunk.norm
    assert isinstance(layers, nn.ModuleList)
    assert isinstance(norm, nn.Module)
    if config.encoder_layers > len(layers):
        raise ValueError(
            f"predictor_module.encoder_layers must be at most {len(layers)}, the layers of this VAE's encoder, "
            f"got {config.encoder_layers}"
        )
    yield from layers[-config.encoder_layers :]
    yield norm
