"""The network that a run of the diffusion stage starts from: new in a VAE's latent space, or a trained base.

Fine-tuning takes VAE, latent statistics, denoiser and diffusion process from the base. Conditions may be added to an
unconditional base, or are those that it has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from torch import nn

from latentite.base.plain import naming
from latentite.checkpoint import Stage
from latentite.models import load_ldm, load_vae, read_record
from latentite.nn.condition_values import ConditionConfig
from latentite.nn.conditions import ConditionModuleConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import trainable_summary
from latentite.nn.vae import CrystalVAE
from latentite.objectives.ldm import LDMStageConfig
from latentite.training.conditions import check_conditions, check_labels, resolve_conditions
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ldm import LDMTrainingModule
from latentite.training.module import freeze_parameters
from latentite.training.stage_settings import LDMModuleConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkPlan:
    """The parts from which a run builds its network."""

    settings: LDMStageConfig
    """From which a checkpoint of the run can build it again."""
    vae: CrystalVAE | None
    """The trained VAE of a new network; None in fine-tuning, where the base has it."""
    base: LatentDiffusion | None
    """The model that is fine-tuned."""


def plan_network(config: LDMModuleConfig, data: CrystalDataModule) -> NetworkPlan:
    """Read what the network is made from.

    Raises:
        ValueError: when a checkpoint cannot be used, or VAE, base, conditions and data do not fit together.
    """
    if config.ldm_ckpt_path is not None:
        return _plan_from_base(config, config.ldm_ckpt_path, data)
    vae, settings = read_vae(config, data)
    return NetworkPlan(settings=settings, vae=vae, base=None)


def build_module(config: LDMModuleConfig, plan: NetworkPlan, *, seed: int) -> LDMTrainingModule:
    """The training module with its network; what is new in that is drawn from torch's own generator."""
    settings = plan.settings
    if plan.base is None:
        assert plan.vae is not None
        network = build_network(plan.vae, settings)
    else:
        network = LatentDiffusion(settings)
        _start_from(plan.base, network)
        freeze_parameters(network, config.freeze, setting="ldm_module.freeze")
        log.info("fine-tuning %s: %s", config.ldm_ckpt_path, trainable_summary(network))
    return LDMTrainingModule(
        replace(config, denoiser=settings.denoiser, diffusion=settings.diffusion),
        network,
        seed=seed,
        fit_latent_statistics=plan.base is None,
        fit_condition_statistics=plan.base is None or plan.base.condition_module is None,
    )


def read_vae(config: LDMModuleConfig, data: CrystalDataModule) -> tuple[CrystalVAE, LDMStageConfig]:
    """The trained VAE, and what a checkpoint of this run will need to build its network again.

    Raises:
        ValueError: when the VAE's checkpoint cannot be used, or conditions and data do not fit.
    """
    assert config.vae_ckpt_path is not None
    with naming("ldm_module.vae_ckpt_path"):
        vae = load_vae(config.vae_ckpt_path)
    settings = LDMStageConfig(
        vae=vae.settings,
        denoiser=config.denoiser,
        diffusion=config.diffusion,
        condition_module=_run_conditions(config, data, hidden_size=config.denoiser.shape[1]),
    )
    return vae.network, settings


def _run_conditions(
    config: LDMModuleConfig, data: CrystalDataModule, *, hidden_size: int
) -> ConditionModuleConfig | None:
    """The conditions of a run on these data, for a denoiser of that width; None for an unconditional run."""
    train = data.splits["train"]
    module = resolve_conditions(
        data.config.conditions, config.condition_module, categories=train.categories, hidden_size=hidden_size
    )
    check_labels([] if module is None else module.conditions, train)
    return module


def build_network(vae: CrystalVAE, settings: LDMStageConfig) -> LatentDiffusion:
    """A new network with the trained VAE in it; the denoiser's weights are drawn."""
    network = LatentDiffusion(settings)
    network.vae.load_state_dict(vae.state_dict())
    return network


def _plan_from_base(config: LDMModuleConfig, path: str, data: CrystalDataModule) -> NetworkPlan:
    check_conditions(data.config.conditions, config.condition_module)
    with naming("ldm_module.ldm_ckpt_path"):
        base, settings, _ = load_ldm(path)
    if config.vae_ckpt_path:
        _check_same_vae(config, config.vae_ckpt_path, base)
    conditions = _run_conditions(config, data, hidden_size=settings.denoiser.shape[1])
    if settings.condition_module is not None:
        conditions = _kept_conditions(settings.condition_module, conditions)
    settings = replace(settings, condition_module=conditions, lora=config.lora)
    return NetworkPlan(settings=settings, vae=None, base=base)


def _check_same_vae(config: LDMModuleConfig, path: str, base: LatentDiffusion) -> None:
    there, own = read_record(path, stage=Stage.VAE).state, base.vae.state_dict()
    if there.keys() != own.keys() or not all(own[name].equal(there[name]) for name in own):
        raise ValueError(
            f"vae_ckpt_path must be the VAE that {config.ldm_ckpt_path} was trained on, got another one "
            f"({path}); leave it out (ldm_module.vae_ckpt_path=null): the base brings its own"
        )


def _kept_conditions(base: ConditionModuleConfig, run: ConditionModuleConfig | None) -> ConditionModuleConfig:
    """The base's conditions with the run's drop probabilities.

    Raises:
        ValueError: when the run's conditions are not the base's, in name, order or meaning.
    """
    names = [condition.name for condition in base.conditions]
    base_names = [] if run is None else [condition.name for condition in run.conditions]
    if run is None or base_names != names:
        raise ValueError(
            f"data.target_condition must be [{', '.join(names)}], the conditions of the base (ldm_ckpt_path), "
            f"got [{', '.join(base_names)}]; only an unconditional base can be given conditions"
        )
    for own, stated in zip(run.conditions, base.conditions, strict=True):
        other = stated if stated.unit else replace(stated, unit=own.unit)  # imported ones do not state units
        if _meaning(own) != _meaning(other):
            raise ValueError(
                f"condition {own.name} must mean what it means in the base (ldm_ckpt_path), "
                f"{_meaning(other)}, got {_meaning(own)}"
            )
    return replace(run, absent=base.absent)


def _meaning(condition: ConditionConfig) -> dict[str, object]:
    """Properties of a condition that must not change between base and fine-tuning."""
    return {
        "kind": str(condition.kind),
        "unit": condition.unit,
        "transform": str(condition.transform),
        "classes": condition.classes,
    }


def _start_from(base: LatentDiffusion, network: LatentDiffusion) -> None:
    """Load a base into a network that has adapters or conditions besides; its outputs are the base's.

    Adapters start at zero by themselves. The last layer of new conditions is set to zero: their vector, which
    is added to the embedding of time, then is zero whatever is asked for.
    """
    loaded = network.load_state_dict(base.state_dict(), strict=False)
    assert not loaded.unexpected_keys, "a fine-tuned network has all that its base has"
    if base.condition_module is None and network.condition_module is not None:
        last = network.condition_module.proj[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
