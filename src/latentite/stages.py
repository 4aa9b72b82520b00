"""One config and one function per training stage: typed settings in, a fitted run out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from latentite.checkpoint import Stage
from latentite.predictor.module import PredictorTrainingModule
from latentite.predictor.settings import PredictorModuleConfig
from latentite.predictor.start import build_predictor_module, plan_predictor, wanted_targets
from latentite.rl.config import RLModuleConfig
from latentite.rl.module import build_rl_module, plan_rl
from latentite.training.conditions import check_conditions
from latentite.training.data_config import DataConfig
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, fit
from latentite.training.ldm_config import LDMModuleConfig
from latentite.training.ldm_start import build_module, plan_network
from latentite.training.settings import (
    CallbacksConfig,
    CheckpointConfig,
    MonitorMode,
    Precision,
    RunConfig,
    TrainerConfig,
    with_sections,
)
from latentite.training.vae import VAEModuleConfig, VAETrainingModule


@dataclass(kw_only=True, slots=True)
class TrainVAEConfig(RunConfig):
    """A run of stage 1."""

    task_name: str = "train_vae"
    vae_module: VAEModuleConfig = field(default_factory=VAEModuleConfig)


def train_vae(config: TrainVAEConfig, *, datamodule: CrystalDataModule | None = None) -> FitResult:
    """Train a crystal VAE."""
    module = config.vae_module
    return fit(
        config,
        lambda: VAETrainingModule(module, seed=config.seed),
        stage=Stage.VAE,
        network_config=module.architecture(),
        ema=module.ema,
        datamodule=datamodule,
    )


@dataclass(kw_only=True, slots=True)
class TrainLDMConfig(RunConfig):
    """A run of stage 2."""

    task_name: str = "train_ldm"
    ldm_module: LDMModuleConfig = field(default_factory=LDMModuleConfig)

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_conditions(self.data.conditions, self.ldm_module.condition_module)


def train_ldm(config: TrainLDMConfig, *, datamodule: CrystalDataModule | None = None) -> FitResult:
    """Train a denoiser in a VAE's latent space, from the start or from a trained one."""
    module = config.ldm_module
    data = datamodule or CrystalDataModule(config.data)
    data.setup("fit")
    plan = plan_network(module, data)
    # A base brings its own, whatever is configured.
    module = replace(module, denoiser=plan.settings.denoiser, diffusion=plan.settings.diffusion)
    config = with_sections(config, ldm_module=module)
    return fit(
        config,
        lambda: build_module(module, plan, seed=config.seed),
        stage=Stage.LDM,
        network_config=plan.settings,
        ema=module.ema,
        datamodule=data,
    )


@dataclass(kw_only=True, slots=True)
class TrainRLConfig(RunConfig):
    """A run of stage 3. An epoch is `trainer.limit_train_batches` rollouts of `data.batch_size` prompts."""

    task_name: str = "train_rl"
    data: DataConfig = field(  # not bucketed: a rollout is a fair draw of sizes
        default_factory=lambda: DataConfig(batch_size=5, eval_batch_size=128, bucketed=False)
    )
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(
            max_epochs=100,
            limit_train_batches=10,
            limit_val_batches=1,
            check_val_every_n_epoch=1,
            gradient_clip_val=1.0,
            log_every_n_steps=1,
        )
    )
    callbacks: CallbacksConfig = field(
        default_factory=lambda: CallbacksConfig(
            checkpoint=CheckpointConfig(monitor="val/reward", mode=MonitorMode.MAX)
        )
    )
    rl_module: RLModuleConfig

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches must be 1 in reinforcement learning, where "
                "rl_module.rl_configs.update_tokens bounds the memory, "
                f"got {self.trainer.accumulate_grad_batches}"
            )
        if self.trainer.precision is Precision.FP16_MIXED:
            raise ValueError(
                "trainer.precision must not be 16-mixed in reinforcement learning; use bf16-mixed"
            )
        if "gradient_clip_algorithm" in self.trainer.options:
            raise ValueError(
                "trainer.options.gradient_clip_algorithm must be left out in reinforcement learning, which clips the "
                "norm of the gradient to trainer.gradient_clip_val"
            )


def train_rl(config: TrainRLConfig, *, datamodule: CrystalDataModule | None = None) -> FitResult:
    """Fine-tune a latent diffusion model towards rewards."""
    module = config.rl_module
    data = datamodule or CrystalDataModule(config.data)
    data.setup("fit")
    plan = plan_rl(module, data)
    max_norm = config.trainer.gradient_clip_val  # the module clips, once per optimizer step of its own
    try:
        return fit(
            config,
            lambda: build_rl_module(module, plan, seed=config.seed, max_norm=max_norm),
            stage=Stage.RL,
            network_config=plan.settings,
            ema=module.ema,
            datamodule=data,
        )
    finally:
        plan.rewards.close()


@dataclass(kw_only=True, slots=True)
class TrainPredictorConfig(RunConfig):
    """A run of stage 4."""

    task_name: str = "train_predictor"
    predictor_module: PredictorModuleConfig


def train_predictor(
    config: TrainPredictorConfig, *, datamodule: CrystalDataModule | None = None
) -> FitResult:
    """Train a property predictor on a VAE's encoder, from the start or from a trained one."""
    module = config.predictor_module
    properties = list(dict.fromkeys([*config.data.properties, *wanted_targets(module)]))
    config = replace(config, data=replace(config.data, properties=properties))
    data = datamodule or CrystalDataModule(config.data)
    data.setup("fit")
    plan = plan_predictor(module, data)
    module = module.in_force(plan.settings)
    config = with_sections(config, predictor_module=module)
    built: list[PredictorTrainingModule] = []

    def build() -> PredictorTrainingModule:
        built.append(build_predictor_module(module, plan, data, seed=config.seed))
        return built[0]

    result = fit(
        config,
        build,
        stage=Stage.PREDICTOR,
        network_config=plan.settings,
        ema=module.ema,
        datamodule=data,
    )
    return replace(result, metrics=result.metrics | built[0].report)
