"""Settings of the third stage: the `rl_module` group."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from latentite.base.plain import check_counts
from latentite.generators.latent.chain import SamplingConfig
from latentite.nn.lora import LoraConfig
from latentite.rewards.combine import RewardConfig
from latentite.rewards.repeats import CrystalKind
from latentite.training.ema import EMAConfig
from latentite.training.optim import OptimizerConfig
from latentite.training.settings import (
    CallbacksConfig,
    CheckpointConfig,
    DataConfig,
    MonitorMode,
    Precision,
    RunConfig,
    TrainerConfig,
)


class Algorithm(StrEnum):
    """Surrogate and baseline."""

    GRPO = "grpo"
    PPO = "ppo"
    REINFORCE = "reinforce"


class KLForm(StrEnum):
    """Measure of the divergence from the reference."""

    CLOSED = "closed"
    """Exactly, by the formula for the two distributions (for latent diffusion Gaussians; a crystal GPT has none)."""
    K3 = "k3"
    """Estimated at the action that was drawn."""


class Baseline(StrEnum):
    """Over which crystals GRPO and REINFORCE compare rewards."""

    GROUP = "group"
    """Those of the same prompt: the same number of atoms and the same conditions."""
    BATCH = "batch"
    """All of a rollout."""


class Keep(StrEnum):
    """The crystals of a prompt that are trained, if more are drawn."""

    BEST = "best"
    EXTREMES = "extremes"
    """As many of the best as of the worst."""


class StepChoice(StrEnum):
    """The decisions of a trajectory that are trained, if not all."""

    RANDOM = "random"
    """Drawn anew for every rollout."""
    EARLY = "early"
    """The first, noisiest ones."""


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The algorithm: `rl_module.rl_configs`. Defaults are Chemeleon2's but for `num_train_steps`."""

    algorithm: Algorithm = Algorithm.GRPO
    num_group_samples: int = 64
    """Crystals per prompt that are trained; `data.batch_size` is the number of prompts of a rollout."""
    best_of: int = 1
    """So many times as many are drawn and get rewards; 1: all are trained."""
    keep: Keep = Keep.BEST
    """The ones that are trained."""
    baseline: Baseline = Baseline.GROUP
    scale_advantages: bool = True
    """GRPO: divide by the spread within the group."""
    max_advantage: float | None = 5.0
    """Advantages are clipped to this size; null: not."""
    running_decay: float = 0.9
    """PPO: share of the running statistics that a rollout keeps."""
    clip_ratio: float = 1e-3
    """c; not of REINFORCE."""
    kl_weight: float = 1.0
    kl_form: KLForm = KLForm.CLOSED
    entropy_weight: float = 1e-5
    """Of denoising chains only steps of learned variance have an entropy that can change."""
    per_entry: bool = True
    """Log-ratios, divergences and entropies are means over a crystal's entries; off, sums."""
    num_inner_epochs: int = 1
    """Passes over each rollout."""
    num_minibatches: int = 2
    """Optimizer steps per inner epoch."""
    num_train_steps: int | None = 10
    """Most denoising decisions of a chain that are trained; null: all. With 10 of 50 the reward rises two to three
    times as fast as with 25 or all (docs/rl.md)."""
    step_choice: StepChoice = StepChoice.RANDOM
    update_tokens: int | None = None
    """Most atoms in one pass of an update: memory and speed, not the result; null: 1024 on a CPU, 8192 elsewhere."""

    def __post_init__(self) -> None:
        check_counts(self, "num_group_samples", "best_of", "num_inner_epochs", "num_minibatches")
        check_counts(self, "num_train_steps", "update_tokens", or_null=True)
        for name in ("clip_ratio", "max_advantage"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("kl_weight", "entropy_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0.0 <= self.running_decay < 1.0:
            raise ValueError(f"running_decay must lie in [0, 1), got {self.running_decay}")
        is_compared = self.algorithm is not Algorithm.PPO and self.baseline is Baseline.GROUP
        if is_compared and self.num_drawn == 1:
            raise ValueError(
                f"num_group_samples must be at least 2 for {self.algorithm} with baseline=group (a crystal is "
                "compared with the others of its group), got 1; or set baseline=batch"
            )
        if self.algorithm is Algorithm.REINFORCE and self.num_inner_epochs > 1:
            raise ValueError(
                f"num_inner_epochs must be 1 for reinforce, which does not correct for a policy that has moved, "
                f"got {self.num_inner_epochs}"
            )

    @property
    def num_drawn(self) -> int:
        """Crystals per prompt that are drawn and get rewards."""
        return self.best_of * self.num_group_samples

    def check_rollout(self, num_crystals: int) -> None:
        """Refuse a rollout in which nothing can be compared.

        Raises:
            ValueError: naming the settings.
        """
        if self.algorithm is not Algorithm.PPO and num_crystals < 2:
            raise ValueError(
                "data.batch_size x rl_configs.num_group_samples must be at least 2, got a rollout of 1 crystal"
            )


@dataclass(kw_only=True, slots=True)
class ReplayConfig:
    """Replay of the best trajectories: `rl_module.replay`."""

    size: int = 64
    """Trajectories that are kept; one is about 100 kB (50 steps, 20 atoms, 8 channels), also in checkpoints."""
    num_samples: int = 16
    """Drawn for each rollout's updates, of those that are better than the rollout's mean."""
    max_age: int = 50
    """Rollouts after which a trajectory is dropped."""
    kind: CrystalKind = CrystalKind.FORMULA
    """Of each kind only the best is kept."""

    def __post_init__(self) -> None:
        check_counts(self, "size", "num_samples", "max_age")


@dataclass(kw_only=True, slots=True)
class RLModuleConfig:
    """Everything about the reinforcement learning stage but its data: the `rl_module` group."""

    ldm_ckpt_path: str | None = None
    """Path or name of the model that is fine-tuned: a latent diffusion model, a crystal GPT, or what this stage has
    made of one. Required."""
    rl_configs: PolicyConfig = field(default_factory=PolicyConfig)
    reward_fn: RewardConfig
    reward_workers: int = 0
    """Processes in which rewards are computed while the next rollout is drawn; 0: here, and nothing overlaps."""
    replay: ReplayConfig | None = None
    """The best trajectories so far are trained on again; null: off."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=50, batch_size=512))
    """The chain; its batch size bounds the memory of a rollout, and is all that a crystal GPT takes of it."""
    lora: LoraConfig | None = None
    """Train low-rank adapters of the denoiser instead of all weights. Not of a crystal GPT."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-5))
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.0))
    num_pictures: int = 4
    """Crystals in each picture of a validation: the best, and the first; 0: none."""

    def __post_init__(self) -> None:
        if not self.ldm_ckpt_path:
            raise ValueError(
                "ldm_ckpt_path must name the model to fine-tune (a path or a name of `latentite hub list`)"
            )
        for name in ("num_pictures", "reward_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.rl_configs.algorithm is Algorithm.REINFORCE:
            why = "for reinforce, which does not correct for a policy that has moved"
            if self.reward_workers > 0:
                raise ValueError(f"reward_workers must be 0 {why}, got {self.reward_workers}")
            if self.replay is not None:
                raise ValueError(f"replay must be null {why}")

    def check_processes(self, count: int) -> None:
        """Refuse what one process of several cannot keep in its checkpoint.

        Raises:
            ValueError: naming the setting.
        """
        if count > 1 and self.reward_workers > 0:
            raise ValueError(
                f"rl_module.reward_workers must be 0 in a run of several processes (its rollouts under way would be "
                f"missing in checkpoints), got {self.reward_workers} and {count} processes"
            )
        if count > 1 and self.replay is not None:
            raise ValueError(
                f"rl_module.replay must be null in a run of several processes (most of its trajectories would be "
                f"missing in checkpoints), got {count} processes"
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
