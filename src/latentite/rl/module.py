"""Stage 3: the Lightning module that fine-tunes a policy towards rewards, and the start of its run.

A training step is a rollout, its rewards, and the updates that they allow; the maths is in `rl/objective.py`.
With `reward_workers` a step draws a rollout and learns from the one before it; the last step of an epoch learns from
both. The network is always in evaluation mode: dropout in one of the two passes of a ratio would be noise in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from latentite.base.plain import naming
from latentite.crystal import CrystalBatch
from latentite.data.sampler import AugmentationConfig
from latentite.generators.policy import Policy, PolicyPlan, Prompts
from latentite.generators.table import open_policy_base
from latentite.nn.lora import trainable_summary
from latentite.objectives.terms import LossTerms
from latentite.rewards.combine import Rewards, RewardWorkers
from latentite.rewards.repeats import DiversityFilter
from latentite.rl.config import KLForm, RLModuleConfig
from latentite.rl.objective import RunningRewards, choose_steps, compute_advantages
from latentite.rl.rollout import (
    PendingRollout,
    ReplayBuffer,
    Rollout,
    RolloutRewards,
    experience_of,
    start_rewards,
    start_rollout_rewards,
)
from latentite.rl.update import Learner, minibatches
from latentite.training.conditions import check_labels
from latentite.training.datamodule import CrystalDataModule
from latentite.training.module import StageModule, Stream
from latentite.training.optim import SchedulerConfig

MEMORY_KEY = "rl_memory"
"""Section of a checkpoint: what the stage remembers besides weights. Absent where nothing is on that does."""


class RLTrainingModule(StageModule):
    """Fine-tunes the network of a policy; its reference stays as it was."""

    running_rewards: Tensor

    def __init__(
        self,
        config: RLModuleConfig,
        policy: Policy[Any],
        rewards: Rewards | RewardWorkers,
        *,
        seed: int = 0,
        max_norm: float | None = 1.0,
    ) -> None:
        """Take the policy, which starts equal to its reference.

        Args:
            config: of the stage.
            policy: what is trained.
            rewards: what is wanted.
            seed: of all draws.
            max_norm: gradients are clipped to this norm; None: not.
        """
        super().__init__(
            seed=seed,
            augmentation=AugmentationConfig(),
            optimizer=config.optimizer,
            scheduler=SchedulerConfig(),
        )
        self.automatic_optimization = False
        self.config = config
        self.network = policy.network.eval()
        # No module itself, so that the reference is neither a parameter nor in checkpoints: it is read from its own.
        self.policy = policy
        self.rewards = rewards
        self.max_norm = max_norm
        self.register_buffer("running_rewards", RunningRewards.empty().state)
        wanted = config.reward_fn.diversity_filter
        self.diversity_filter = None if wanted is None else DiversityFilter(wanted)
        self.replay = None if config.replay is None else ReplayBuffer(config.replay)
        self._pending: list[PendingRollout] = []
        self._resumed: dict[str, Any] = {}

    def compile_network(self) -> None:
        """Compile policy and reference in place."""
        self.policy.compile()

    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        """Not of this stage: a step is many updates."""
        raise NotImplementedError("reinforcement learning has no single loss per batch")

    def on_fit_start(self) -> None:
        """Check the processes, prepare the rewards, and restore rollouts that were pending when the run stopped."""
        self.config.check_processes(self.trainer.world_size)
        self.policy = self.policy.to(self.device)
        self.rewards.set_reference(self.datamodule.splits["train"].crystals)
        self._learner = Learner(policy=self.policy, config=self.config.rl_configs)
        states = self._resumed.get("pending", ())
        rollouts = [Rollout.restored(state, self.policy, self.device) for state in states]
        self._pending = [self._start_rewards(rollout) for rollout in rollouts]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        memory: dict[str, Any] = {}
        if self._pending:
            memory["pending"] = [pending.rollout.state() for pending in self._pending]
        if self.diversity_filter is not None:
            memory["diversity_filter"] = self.diversity_filter.state()
        if self.replay is not None:
            memory["replay"] = self.replay.state()
        if memory:
            checkpoint[MEMORY_KEY] = memory

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get(MEMORY_KEY, {})
        if "in_flight" in self._resumed:
            raise ValueError(
                "ckpt_path must be a checkpoint of the end of an epoch to go on from a run of an earlier version, got "
                "one of the middle, with rollouts whose rewards were pending"
            )
        if self.diversity_filter is not None:
            self.diversity_filter.restore(self._resumed.get("diversity_filter", {}))
        if self.replay is not None:
            self.replay.restore(self._resumed.get("replay", {}), self.policy)

    def on_train_epoch_start(self) -> None:
        self.network.eval()

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor | None:
        """Rollout, rewards, update; the update is that of the rollout before where rewards overlap."""
        self._pending.append(self._start_rewards(self._rollout(batch, batch_idx)))
        num_left = int(self.config.reward_workers > 0 and not self.trainer.is_last_batch)
        logs = []
        while len(self._pending) > num_left:
            logs.append(self._learn(self._pending.pop(0)))
        if not logs:
            return None
        logged = {name: sum(log[name] for log in logs) / len(logs) for name in logs[0]}
        self._log(logged, len(batch), on_step=True)
        return torch.tensor(logged["train/loss"])

    def _rollout(self, batch: CrystalBatch, batch_idx: int) -> Rollout:
        prompts = self._prompts(batch, Stream.ROLLOUT, batch_idx, self.config.rl_configs.num_drawn)
        start = time.perf_counter()
        trajectories = self.policy.rollout(prompts)
        return Rollout(
            trajectories=trajectories,
            prompts=prompts,
            epoch=self.current_epoch,
            batch_idx=batch_idx,
            num_updates=self.global_step,
            seconds=time.perf_counter() - start,
        )

    def _start_rewards(self, rollout: Rollout) -> PendingRollout:
        crystals = self.policy.crystals(rollout.trajectories)
        start = partial(start_rewards, self.rewards, repeats=self.diversity_filter)
        wait = start_rollout_rewards(crystals, rollout.prompts, start)
        return PendingRollout(rollout=rollout, crystals=crystals, wait=wait)

    def _learn(self, pending: PendingRollout) -> dict[str, float]:
        """Wait for the rewards and learn from them; returns what is to be logged."""
        start = time.perf_counter()
        rewards = pending.wait()
        rewarded = time.perf_counter()
        values = self._update(pending, rewards)
        logged = {f"train/{name}": float(value) for name, value in values.items()}
        logged |= {f"reward/{name}": value for name, value in rewards.means.items()}
        return logged | {
            "train/reward": float(rewards.values.mean()),
            "train/reward_std": float(rewards.values.std(correction=0)),
            "time/rollout": pending.rollout.seconds,
            "time/reward": rewarded - start,
            "time/update": time.perf_counter() - rewarded,
        }

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """One crystal for each of the batch, with the same seeds every time."""
        prompts = self._prompts(batch, Stream.VALIDATION, batch_idx, 1, epoch=0)
        crystals = self.policy.crystals(self.policy.rollout(prompts))
        table = start_rewards(self.rewards, crystals)()
        means = table.means()
        logged: dict[str, Tensor | float] = {f"val/reward/{name}": value for name, value in means.items()}
        self._log(logged | {"val/reward": means["total"]}, len(batch), on_step=False)
        if batch_idx == 0 and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            from latentite.training.loggers import show_best

            show_best(self.trainer, crystals, table, self.config.num_pictures)

    def _prompts(
        self, batch: CrystalBatch, stream: Stream, batch_idx: int, num_samples: int, epoch: int | None = None
    ) -> Prompts:
        epoch = self.current_epoch if epoch is None else epoch
        draws = self.generator(stream, epoch, batch_idx, 0)
        return Prompts.of(
            batch,
            num_samples=num_samples,
            run_seed=draws.initial_seed(),
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )

    def _update(self, pending: PendingRollout, rewards: RolloutRewards) -> dict[str, Tensor]:
        """All optimizer steps of a rollout."""
        config, rollout = self.config.rl_configs, pending.rollout
        running = RunningRewards(state=self.running_rewards.cpu())
        running = running.updated(rewards.values, config.running_decay)
        self.running_rewards.copy_(running.state)
        draws = self._generator_on_cpu(Stream.MINIBATCHES, rollout)
        advantages = compute_advantages(rewards.values, rewards.groups, config, running)
        is_on_policy = rollout.num_updates == self.global_step
        experience, places, count = experience_of(
            rollout, rewards, advantages, config, is_on_policy=is_on_policy
        )
        num_replayed = 0
        if self.replay is not None:
            replayed = self.replay.draw(rewards.values, config, running, draws)
            if replayed is not None:
                experience, num_replayed = experience.joined(replayed), len(replayed)
                places = torch.cat([places, count + torch.arange(num_replayed)])
            self.replay.remember(rollout.trajectories, pending.crystals, rewards.values, rewards.is_usable)
        num_decisions = int(experience.trajectories.num_decisions.max())
        steps = choose_steps(num_decisions, config, self._generator_on_cpu(Stream.STEPS, rollout))
        parts = [
            part.to(self.device)
            for _ in range(config.num_inner_epochs)
            for part in minibatches(places, count + num_replayed, config.num_minibatches, draws)
        ]
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        logged = self._learner.update(
            experience, steps.to(self.device), parts, optimizer, max_norm=self.max_norm
        )
        return logged if self.replay is None else logged | {"replayed": torch.tensor(float(num_replayed))}

    def _generator_on_cpu(self, stream: Stream, rollout: Rollout) -> torch.Generator:
        """The same draws in every process and on every device."""
        draws = self.generator(stream, rollout.epoch, rollout.batch_idx, 0)
        return torch.Generator().manual_seed(draws.initial_seed())

    def _log(self, values: Mapping[str, Tensor | float], batch_size: int, *, on_step: bool) -> None:
        self.log_dict(
            {name: float(value) for name, value in values.items()},
            batch_size=batch_size,
            on_step=on_step,
            on_epoch=not on_step,
            sync_dist=not on_step,
        )


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RLPlan:
    """The policy and the rewards that a run starts from."""

    generator: str
    """Name of the generator that is trained."""
    policy: PolicyPlan
    rewards: Rewards | RewardWorkers


def plan_rl(config: RLModuleConfig, data: CrystalDataModule) -> RLPlan:
    """Read the base and build the rewards.

    Raises:
        ValueError: when one of them cannot be used, or the conditions of base and data differ.
    """
    assert config.ldm_ckpt_path is not None
    with naming("rl_module.ldm_ckpt_path"):
        generator, base = open_policy_base(config.ldm_ckpt_path)
    base = base.asking(data.config.conditions)
    check_labels(base.conditions, data.splits["train"])
    policy = base.plan(config.sampling, lora=config.lora, per_entry=config.rl_configs.per_entry)
    rules = config.rl_configs
    if rules.kl_weight and rules.kl_form is KLForm.CLOSED and not policy.has_closed_kl:
        raise ValueError(
            f"rl_module.rl_configs.kl_form must be k3 for the generator {generator}, whose KL has no closed form, got "
            "closed"
        )
    config.rl_configs.check_rollout(data.config.batch_size * config.rl_configs.num_group_samples)
    rewards: Rewards | RewardWorkers = Rewards.build(config.reward_fn)
    if config.reward_workers > 0:
        rewards = RewardWorkers(config.reward_fn, config.reward_workers)
    return RLPlan(generator=generator, policy=policy, rewards=rewards)


def build_rl_module(
    config: RLModuleConfig, plan: RLPlan, *, seed: int, max_norm: float | None
) -> RLTrainingModule:
    """The training module; adapters are drawn from torch's own generator."""
    policy = plan.policy.build()
    log.info("fine-tuning %s: %s", config.ldm_ckpt_path, trainable_summary(policy.network))
    return RLTrainingModule(config, policy, plan.rewards, seed=seed, max_norm=max_norm)
