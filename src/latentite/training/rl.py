"""Stage 3: the Lightning module that fine-tunes a latent diffusion model towards rewards.

A training step is a rollout, its rewards, and the updates that they allow; the maths is in `objectives/policy.py`.
The network is always in evaluation mode: dropout in one of the two passes of a ratio would be noise in it. Comes
after `rollouts.py` and `rl_update.py`; `fit.py` drives it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.data.augment import AugmentationConfig
from latentite.nn.adapters import LoraConfig
from latentite.nn.ldm import LatentDiffusion
from latentite.objectives.advantages import RunningRewards
from latentite.objectives.ldm import LDMStageConfig
from latentite.objectives.policy import PolicyConfig, choose_steps, compute_advantages
from latentite.objectives.terms import LossTerms
from latentite.rewards.combine import RewardConfig, Rewards, RewardTable
from latentite.rollout import Rollout
from latentite.sampling.chain import SamplingConfig
from latentite.sampling.checks import geometry_refusals
from latentite.training.datamodule import CrystalDataModule
from latentite.training.ema import EMAConfig
from latentite.training.gather import judged_together
from latentite.training.module import StageModule, Stream
from latentite.training.optim import OptimizerConfig, SchedulerConfig
from latentite.training.rl_update import Learner, Sums, minibatches, sum_gradients
from latentite.training.rollouts import Policy, Prompts, build_chain, collect, decode

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class RLModuleConfig:
    """Everything about the reinforcement learning stage but its data: the `rl_module` group."""

    ldm_ckpt_path: str | None = None
    """Path or name of the model that is fine-tuned, a checkpoint of stage 2 or 3. Required."""
    rl_configs: PolicyConfig = field(default_factory=PolicyConfig)
    reward_fn: RewardConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """The chain; its batch size bounds the memory of a rollout."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of the denoiser instead of all weights."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.0))
    num_pictures: int = 4
    """Crystals in each picture of a validation: the best, and the first; 0: none."""

    def __post_init__(self) -> None:
        if not self.ldm_ckpt_path:
            raise ValueError(
                "ldm_ckpt_path must name the model to fine-tune (a path or a name of `latentite hub list`)"
            )
        if self.num_pictures < 0:
            raise ValueError(f"num_pictures must be 0 or more, got {self.num_pictures}")


class RLTrainingModule(StageModule):
    """Fine-tunes `network.denoiser` and `network.condition_module`; the reference stays as it was."""

    network: LatentDiffusion
    running_rewards: Tensor

    def __init__(
        self,
        config: RLModuleConfig,
        network: LatentDiffusion,
        reference: LatentDiffusion,
        settings: LDMStageConfig,
        rewards: Rewards,
        *,
        seed: int = 0,
        max_norm: float | None = 1.0,
    ) -> None:
        """Take the network to train and the frozen reference, which start equal.

        Args:
            config: of the stage.
            network: what is trained.
            reference: what it must stay near.
            settings: of both, with the diffusion process.
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
        self.network = network.eval()
        # In a tuple, so that it is neither a parameter nor in checkpoints: it is read from its own.
        self._reference = (reference.eval().requires_grad_(False),)
        self.rewards = rewards
        self.max_norm = max_norm
        self.chain = build_chain(settings.diffusion, config.sampling)
        self.register_buffer("running_rewards", RunningRewards.empty().state)

    def compile_network(self) -> None:
        """Compile the denoiser's blocks in place, of both networks."""
        for network in (self.network, *self._reference):
            for block in network.denoiser.blocks:
                block.compile(dynamic=True)

    def training_terms(self, batch: CrystalBatch, generator: torch.Generator) -> LossTerms:
        """Not of this stage: a step is many updates."""
        raise NotImplementedError("reinforcement learning has no single loss per batch")

    def on_fit_start(self) -> None:
        reference = self._reference[0].to(self.device)
        self.chain = self.chain.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own attribute
        assert isinstance(data, CrystalDataModule)
        self.rewards.set_reference(data.splits["train"].crystals)
        self._learner = Learner(
            chain=self.chain,
            policy=Policy(network=self.network, sampling=self.config.sampling),
            reference=Policy(network=reference, sampling=self.config.sampling),
            config=self.config.rl_configs,
        )

    def on_train_epoch_start(self) -> None:
        self.network.eval()

    def training_step(self, batch: CrystalBatch, batch_idx: int) -> Tensor:
        """Roll out, judge, update."""
        prompts = self._prompts(batch, Stream.ROLLOUT, batch_idx, self.config.rl_configs.num_group_samples)
        start = time.perf_counter()
        rollout = collect(self._learner.policy, self.chain, prompts)
        crystals = decode(self.network, rollout, prompts)
        rolled = time.perf_counter()
        judged = judged_together(crystals, prompts, self._judge)
        rewarded = time.perf_counter()
        values = self._update(rollout, prompts, judged.rewards, judged.groups, batch_idx)
        updated = time.perf_counter()
        logged: dict[str, Tensor | float] = {f"train/{name}": value for name, value in values.items()}
        logged |= {f"reward/{name}": value for name, value in judged.means.items()}
        logged |= {
            "train/reward": judged.rewards.mean(),
            "train/reward_std": judged.rewards.std(correction=0),
            "time/rollout": rolled - start,
            "time/reward": rewarded - rolled,
            "time/update": updated - rewarded,
        }
        self._log(logged, len(batch), on_step=True)
        return values["loss"]

    def validation_step(self, batch: CrystalBatch, batch_idx: int) -> None:
        """One crystal for each of the batch, with the same seeds every time."""
        prompts = self._prompts(batch, Stream.VALIDATION, batch_idx, 1, epoch=0)
        rollout = collect(self._learner.policy, self.chain, prompts)
        crystals = decode(self.network, rollout, prompts)
        table = self._judge(crystals)
        means = table.means()
        logged: dict[str, Tensor | float] = {f"val/reward/{name}": value for name, value in means.items()}
        self._log(logged | {"val/reward": means["total"]}, len(batch), on_step=False)
        if batch_idx == 0 and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self._draw(crystals, table)

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

    def _judge(self, crystals: CrystalBatch) -> RewardTable:
        refusals = geometry_refusals(crystals)
        return self.rewards(crystals, torch.tensor([refusal is None for refusal in refusals]))

    def _update(
        self, rollout: Rollout, prompts: Prompts, rewards: Tensor, groups: Tensor, batch_idx: int
    ) -> dict[str, Tensor]:
        """All optimizer steps of a rollout; `rewards` and `groups` are those of all processes, in order of place."""
        config = self.config.rl_configs
        running = RunningRewards(state=self.running_rewards.cpu()).updated(rewards, config.running_decay)
        self.running_rewards.copy_(running.state)
        places = (
            prompts.groups * config.num_group_samples + torch.arange(len(prompts)) % config.num_group_samples
        )
        advantages = compute_advantages(rewards, groups, config, running)[places].to(self.device)
        values = self._learner.policy.values(prompts.crystals)
        draws = self._generator_on_cpu(Stream.STEPS, batch_idx)
        steps = choose_steps(rollout.num_decisions, config, draws).to(self.device)
        sums, norms = Sums(), []
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        draws = self._generator_on_cpu(Stream.MINIBATCHES, batch_idx)
        for epoch in range(config.num_inner_epochs):
            for part, crystals in enumerate(minibatches(places, len(rewards), config.num_minibatches, draws)):
                optimizer.zero_grad()
                members = crystals.to(self.device)
                is_first = epoch == part == 0
                sums.merge(
                    self._learner.gradients(rollout, values, advantages, steps, members, is_first=is_first)
                )
                sum_gradients(self.network.parameters())
                limit = float("inf") if self.max_norm is None else self.max_norm
                norms.append(torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit))
                optimizer.step()
        return sums.values() | {"grad_norm": torch.stack(norms).mean()}

    def _generator_on_cpu(self, stream: Stream, batch_idx: int) -> torch.Generator:
        """The same draws in every process and on every device."""
        draws = self.generator(stream, self.current_epoch, batch_idx, 0)
        return torch.Generator().manual_seed(draws.initial_seed())

    def _log(self, values: Mapping[str, Tensor | float], batch_size: int, *, on_step: bool) -> None:
        self.log_dict(
            {name: float(value) for name, value in values.items()},
            batch_size=batch_size,
            on_step=on_step,
            on_epoch=not on_step,
            sync_dist=not on_step,
        )

    def _draw(self, crystals: CrystalBatch, table: RewardTable) -> None:
        """Pictures of the best and of the first usable crystals, into the run's folder and to the loggers."""
        from latentite.training.gallery import show

        usable = table.is_usable.nonzero().flatten()
        count = min(self.config.num_pictures, len(usable))
        if count == 0:
            return
        best = usable[table.total[usable].argsort(descending=True, stable=True)[:count]]
        for name, chosen in (("best", best), ("random", usable[:count])):
            titles = [f"{reward:.3g}" for reward in table.total[chosen].tolist()]
            show(self.trainer, crystals.select(chosen), name=name, titles=titles)
