"""One function per training stage: typed settings in, a fitted run out."""

from __future__ import annotations

from dataclasses import replace

from latentite.checkpoint import CRYSTAL_GPT, LATENT_DIFFUSION, Stage
from latentite.predictor.module import PredictorTrainingModule
from latentite.predictor.settings import TrainPredictorConfig
from latentite.predictor.start import build_predictor_module, plan_predictor, wanted_targets
from latentite.rl.config import TrainRLConfig
from latentite.rl.module import build_rl_module, plan_rl
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, fit
from latentite.training.gpt import build_gpt_module, encoding_of, plan_gpt
from latentite.training.ldm import build_module, plan_network
from latentite.training.orbit_data import OrbitDataModule
from latentite.training.settings import with_sections
from latentite.training.stage_settings import TrainGPTConfig, TrainLDMConfig, TrainVAEConfig
from latentite.training.vae import VAETrainingModule


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
        generator=LATENT_DIFFUSION,
        network_config=plan.settings,
        ema=module.ema,
        datamodule=data,
    )


def train_rl(config: TrainRLConfig, *, datamodule: CrystalDataModule | None = None) -> FitResult:
    """Fine-tune a latent diffusion model or a crystal GPT towards rewards."""
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
            generator=plan.generator,
            network_config=plan.policy.settings,
            ema=module.ema,
            datamodule=data,
            base_data=plan.policy.base_data,
        )
    finally:
        plan.rewards.close()


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


def train_gpt(config: TrainGPTConfig, *, datamodule: CrystalDataModule | None = None) -> FitResult:
    """Train a crystal GPT on orbits, from the start or from a trained one."""
    module = config.gpt_module
    splits = None if datamodule is None else datamodule.splits
    data = OrbitDataModule(config.data, encoding_of(module), splits=splits)
    data.setup("fit")
    plan = plan_gpt(module, config.data.conditions, data)
    # A base brings its own size, whatever is configured.
    module = replace(module, size=plan.settings.size)
    config = with_sections(config, gpt_module=module)
    return fit(
        config,
        lambda: build_gpt_module(module, plan, data, seed=config.seed),
        stage=Stage.GPT,
        generator=CRYSTAL_GPT,
        network_config=plan.settings,
        ema=module.ema,
        datamodule=data,
    )
