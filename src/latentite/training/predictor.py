"""Stage 4: the Lightning module that trains a property predictor on a VAE's encoder.

The maths is in `objectives/predictor.py`; `predictor_rows.py` measures a whole split. Comes after `module.py`;
`fit.py` drives it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentite.crystal import CrystalBatch
from latentite.data.augment import AugmentationConfig
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import Transform
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.nn.predictor_config import FidelityMode, HeadKind, Pooling, PredictorConfig
from latentite.nn.vae import VAEConfig
from latentite.objectives.predictor import PredictorLossConfig, labels_of, predictor_terms
from latentite.objectives.terms import LossTerms
from latentite.predictor_checkpoint import load_predictor
from latentite.training.checkpointing import CheckpointCallback
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.gallery import log_picture
from latentite.training.latent_cache import CachedBatch
from latentite.training.module import StageModule, Stream
from latentite.training.optim import OptimizerConfig, SchedulerConfig, configure
from latentite.training.predictor_cache import CachedInputs, encode_inputs
from latentite.training.predictor_report import draw_split, report_run
from latentite.training.predictor_rows import SplitRows, fit_spread_scale, gather_rows, measure

log = logging.getLogger(__name__)

SECONDS_BETWEEN_FIGURES = 60.0


class EncoderTraining(StrEnum):
    """How much of the encoder is trained with the heads."""

    FROZEN = "frozen"
    LAST = "last"
    """Its last `encoder_layers` layers, the final norm and the layer to the latents."""
    FULL = "full"


@dataclass(kw_only=True, slots=True)
class TargetOptions:
    """What may be said of one target; everything has a default."""

    transform: Transform = Transform.NONE
    """Of a numeric target, before it is normalised."""
    extent: Extent = Extent.NONE
    """Of its baseline per element, fitted to the training split."""
    unit: str | None = None
    """null: that of a well-known name."""


@dataclass(kw_only=True, slots=True)
class PredictorModuleConfig:
    """Everything about the predictor stage but its data: the `predictor_module` group."""

    vae_ckpt_path: str | None = None
    """Path or name (`latentite hub list`) of the VAE's checkpoint. Required, but for continued training."""
    predictor_ckpt_path: str | None = None
    """Continued training: path or name of a predictor's checkpoint. VAE, targets, statistics and heads are then its
    own, whatever the other settings say; fidelities may be added."""
    target_conditions: list[str] = field(default_factory=list)
    """Properties to predict: labels of the data (numbers, or names for classes), or what can be computed from the
    crystals, such as `density`."""
    targets: dict[str, TargetOptions] = field(default_factory=dict)
    """Details by name, for names of `target_conditions`."""
    pooling: Pooling = Pooling.MEAN
    use_encoder_features: bool = True
    hidden: list[int] | None = None
    """Widths of the hidden layers; null for Chemeleon2's, a quarter and a half of the pooled vector."""
    dropout: float = 0.1
    head: HeadKind = HeadKind.POINT
    quantiles: list[float] = field(default_factory=lambda: [0.05, 0.16, 0.3, 0.5, 0.7, 0.84, 0.95])
    ensemble: int = 1
    """Heads that differ in their first weights; their disagreement is the uncertainty."""
    fidelity_mode: FidelityMode = FidelityMode.RESIDUAL
    encoder: EncoderTraining = EncoderTraining.FROZEN
    encoder_layers: int = 2
    """`encoder=last`: how many."""
    encoder_lr_ratio: float = 0.1
    """Learning rate of the encoder, as a share of `optimizer.lr`."""
    freeze: list[str] = field(default_factory=list)
    """Beginnings of the names of parameters that stay as they are: `proj` for the shared trunk and the reference's
    head, when only what is new of a fidelity is to be trained."""
    feature_cache: bool = True
    """Encode the data once and train on that; possible where the encoder is frozen and nothing is augmented."""
    loss: PredictorLossConfig = field(default_factory=PredictorLossConfig)
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(translate=False, rotate=False)
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)

    def __post_init__(self) -> None:
        if not self.vae_ckpt_path and not self.predictor_ckpt_path:
            raise ValueError(
                "vae_ckpt_path must name the VAE's checkpoint (a path or a name of `latentite hub list`), "
                "or predictor_ckpt_path that of a predictor to go on with"
            )
        if not self.target_conditions and not self.predictor_ckpt_path:
            raise ValueError(
                "target_conditions must name at least one property, such as [band_gap], got none"
            )
        if unknown := [name for name in self.targets if name not in self.target_conditions]:
            raise ValueError(
                f"targets.{unknown[0]} must be one of target_conditions ({', '.join(self.target_conditions)})"
            )
        if self.encoder_layers < 1:
            raise ValueError(f"encoder_layers must be at least 1, got {self.encoder_layers}")
        if not self.encoder_lr_ratio > 0.0:
            raise ValueError(f"encoder_lr_ratio must be above 0, got {self.encoder_lr_ratio}")

    @property
    def uses_cache(self) -> bool:
        """Whether every crystal needs to be encoded only once."""
        is_augmented = self.augmentation.translate or self.augmentation.rotate
        return self.feature_cache and self.encoder is EncoderTraining.FROZEN and not is_augmented

    def architecture(
        self,
        vae: VAEConfig,
        *,
        classes: dict[str, list[str]],
        units: dict[str, str],
        fidelities: list[str],
        reference: str | None,
    ) -> PredictorConfig:
        """The part that a checkpoint needs to build the network.

        Args:
            vae: of the VAE's checkpoint.
            classes: names behind the codes of the categorical targets.
            units: of well-known targets.
            fidelities: of the data.
            reference: of them.
        """
        said = {name: self.targets.get(name, TargetOptions()) for name in self.target_conditions}
        units = {name: units.get(name, "") if s.unit is None else s.unit for name, s in said.items()}
        return PredictorConfig(
            vae=vae,
            targets=list(self.target_conditions),
            classes=classes,
            transforms={n: s.transform for n, s in said.items() if s.transform is not Transform.NONE},
            extents={n: s.extent for n, s in said.items() if s.extent is not Extent.NONE},
            units={name: unit for name, unit in units.items() if unit},
            pooling=self.pooling,
            use_encoder_features=self.use_encoder_features,
            hidden=self.hidden,
            dropout=self.dropout,
            head=self.head,
            quantiles=self.quantiles,
            ensemble=self.ensemble,
            fidelities=fidelities,
            reference=reference,
            fidelity_mode=self.fidelity_mode,
        )


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
        self._cache = None
        self._encoded.clear()
        if self.config.uses_cache:
            crystals = self._data.splits["train"].crystals
            start = time.monotonic()
            with self.trainer.precision_plugin.forward_context():
                self._cache = encode_inputs(self.network.eval(), crystals)
            log.info("encoded %d crystals in %.1f s", len(crystals), time.monotonic() - start)
            self.network.train()
        self._data.serve_train_from(self._cache)

    def on_fit_end(self) -> None:
        self._cache = None
        self._encoded.clear()
        self._data.serve_train_from(None)
        if self.trainer.is_global_zero:
            self._report()

    def _report(self) -> None:
        """Measure the checkpoint that the run recommends: its best, else its last."""
        kept = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, CheckpointCallback)]
        path = kept[0].best_path or kept[0].last_path
        network, _ = load_predictor(path)
        folder = Path(self.trainer.default_root_dir)
        self.report, figures = report_run(
            network.to(self.device), self._data.splits, folder, self.config.loss, checkpoint=path.name
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

    @property
    def _data(self) -> CrystalDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        assert isinstance(data, CrystalDataModule)
        return data


def choose_trained(network: PropertyPredictor, config: PredictorModuleConfig) -> None:
    """Say which parameters require gradients.

    Raises:
        ValueError: when the encoder has no such layers, or a name of `freeze` fits nothing.
    """
    network.requires_grad_(True)
    network.vae.requires_grad_(False)
    for part in _trained_parts(network, config):
        part.requires_grad_(True)
    for prefix in config.freeze:
        named = [p for name, p in network.named_parameters() if name.startswith(prefix)]
        if not named:
            parts = ", ".join(name for name, _ in network.named_children())
            raise ValueError(
                f"predictor_module.freeze must hold beginnings of parameter names, got {prefix!r}; "
                f"they begin with {parts}"
            )
        for parameter in named:
            parameter.requires_grad_(False)


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
