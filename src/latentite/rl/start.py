"""What a run of the reinforcement learning stage starts from: a base, its frozen copy, and the rewards."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from latentite.base.plain import naming
from latentite.models import load_ldm
from latentite.nn.ldm import LatentDiffusion
from latentite.nn.lora import trainable_summary
from latentite.objectives.ldm import LDMStageConfig
from latentite.rewards.combine import Rewards
from latentite.rewards.workers import RewardWorkers
from latentite.rl.config import RLModuleConfig
from latentite.rl.module import RLTrainingModule
from latentite.rl.rollouts import build_chain
from latentite.training.conditions import check_labels
from latentite.training.datamodule import CrystalDataModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLPlan:
    """What a run starts from."""

    settings: LDMStageConfig
    base: LatentDiffusion
    rewards: Rewards | RewardWorkers


def plan_rl(config: RLModuleConfig, data: CrystalDataModule) -> RLPlan:
    """Read the base and build the rewards.

    Raises:
        ValueError: when one of them cannot be used, or the conditions of base and data differ.
    """
    assert config.ldm_ckpt_path is not None
    with naming("rl_module.ldm_ckpt_path"):
        base, settings, _ = load_ldm(config.ldm_ckpt_path)
    names = [] if base.condition_module is None else list(base.condition_module.names)
    if data.config.conditions != names:
        raise ValueError(
            f"data.target_condition must be [{', '.join(names)}], the conditions of rl_module.ldm_ckpt_path, "
            f"got [{', '.join(data.config.conditions)}]"
        )
    if settings.condition_module is not None:
        check_labels(settings.condition_module.conditions, data.splits["train"])
    build_chain(settings.diffusion, config.sampling)
    config.rl_configs.check_rollout(data.config.batch_size * config.rl_configs.num_group_samples)
    rewards: Rewards | RewardWorkers = Rewards.build(config.reward_fn)
    if config.reward_workers > 0:
        rewards = RewardWorkers(config.reward_fn, config.reward_workers)
    return RLPlan(settings=replace(settings, lora=config.lora), base=base, rewards=rewards)


def build_rl_module(
    config: RLModuleConfig, plan: RLPlan, *, seed: int, max_norm: float | None
) -> RLTrainingModule:
    """The training module; adapters are drawn from torch's own generator."""
    network = LatentDiffusion(plan.settings)
    found = network.load_state_dict(plan.base.state_dict(), strict=False)
    assert not found.unexpected_keys, "a fine-tuned network has all that its base has"
    log.info("fine-tuning %s: %s", config.ldm_ckpt_path, trainable_summary(network))
    return RLTrainingModule(
        config, network, plan.base, plan.settings, plan.rewards, seed=seed, max_norm=max_norm
    )
