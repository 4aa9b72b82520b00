"""Settings of the third stage: the `rl_module` group."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentite.generators.latent.chain import SamplingConfig
from latentite.nn.lora import LoraConfig
from latentite.rewards.combine import RewardConfig
from latentite.rl.policy_config import Algorithm, PolicyConfig
from latentite.rl.replay import ReplayConfig
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


@dataclass(kw_only=True, slots=True)
class RLModuleConfig:
    """Everything about the reinforcement learning stage but its data: the `rl_module` group."""

    ldm_ckpt_path: str | None = None
    """Path or name of the model that is fine-tuned, a checkpoint of stage 2 or 3. Required."""
    rl_configs: PolicyConfig = field(default_factory=PolicyConfig)
    reward_fn: RewardConfig
    reward_workers: int = 0
    """Processes in which rewards are computed while the next rollout is drawn; 0: here, and nothing overlaps."""
    replay: ReplayConfig | None = None
    """The best trajectories so far are trained on again; null: off."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=50, batch_size=512))
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
