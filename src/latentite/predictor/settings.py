"""Settings of the fourth stage: the `predictor_module` group, and a whole run. No Lightning here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from latentite.base.plain import check_counts
from latentite.data.sampler import AugmentationConfig
from latentite.nn.baselines import Extent
from latentite.nn.condition_values import Transform
from latentite.nn.predictor_config import HeadConfig, PredictorConfig
from latentite.nn.vae import VAEConfig
from latentite.objectives.predictor import PredictorLossConfig
from latentite.training.ema import EMAConfig
from latentite.training.optim import OptimizerConfig, SchedulerConfig
from latentite.training.settings import RunConfig


class EncoderTraining(StrEnum):
    """Parts of the encoder that are trained with the heads."""

    FROZEN = "frozen"
    LAST = "last"
    """Its last `encoder_layers` layers, the final norm and the layer to the latents."""
    FULL = "full"


@dataclass(kw_only=True, slots=True)
class TargetOptions:
    """Options of one target; everything has a default."""

    transform: Transform = Transform.NONE
    """Of a numeric target, before it is normalised."""
    extent: Extent = Extent.NONE
    """Of its baseline per element, fitted to the training split."""
    unit: str | None = None
    """null: that of a well-known name."""


@dataclass(kw_only=True, slots=True)
class PredictorModuleConfig(HeadConfig):
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
        # slots=True replaces the class, so the zero-argument super() would not find it
        HeadConfig.__post_init__(self)
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
        check_counts(self, "encoder_layers")
        if not self.encoder_lr_ratio > 0.0:
            raise ValueError(f"encoder_lr_ratio must be above 0, got {self.encoder_lr_ratio}")

    @property
    def uses_cache(self) -> bool:
        """True where every crystal needs to be encoded only once."""
        is_augmented = self.augmentation.translate or self.augmentation.rotate
        return self.feature_cache and self.encoder is EncoderTraining.FROZEN and not is_augmented

    def in_force(self, network: PredictorConfig) -> PredictorModuleConfig:
        """The settings that act: a trained predictor brings its own heads and targets, and not all is cached."""
        targets = {
            name: TargetOptions(
                transform=network.transforms.get(name, Transform.NONE),
                extent=network.extents.get(name, Extent.NONE),
                unit=network.units.get(name, ""),
            )
            for name in network.targets
        }
        return replace(
            self,
            target_conditions=list(network.targets),
            targets=targets,
            feature_cache=self.uses_cache,
            **_heads(network),
        )

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
            fidelities=fidelities,
            reference=reference,
            **_heads(self),
        )


def _heads(config: HeadConfig) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in fields(HeadConfig)}


@dataclass(kw_only=True, slots=True)
class TrainPredictorConfig(RunConfig):
    """A run of stage 4."""

    task_name: str = "train_predictor"
    predictor_module: PredictorModuleConfig
