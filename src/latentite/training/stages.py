"""One config and one function per training stage: typed settings in, a fitted run out.

Comes after `fit.py`; `config.py` fills the configs from YAML and calls the functions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from latentite.checkpoint import Stage
from latentite.training.conditions import check_conditions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.fit import FitResult, fit
from latentite.training.ldm import LDMModuleConfig
from latentite.training.ldm_start import build_module, plan_network
from latentite.training.settings import RunConfig
from latentite.training.vae import VAEModuleConfig, VAETrainingModule


@dataclass(kw_only=True, slots=True)
class TrainVAEConfig(RunConfig):
    """A run of stage 1."""

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
    return fit(
        config,
        lambda: build_module(module, plan, seed=config.seed),
        stage=Stage.LDM,
        network_config=plan.settings,
        ema=module.ema,
        datamodule=data,
    )
