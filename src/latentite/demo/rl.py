"""The demo's stage of reinforcement learning: its own small model, fine-tuned towards denser crystals.

Crystals of the same seeds are drawn before and after, judged by the reward that was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentite.config import compose, load
from latentite.demo.length import SLOWEST, finished
from latentite.draw.curves import draw_reward_curve
from latentite.generate import GenerateConfig, generate_from
from latentite.rewards.combine import Rewards
from latentite.stages import TrainRLConfig, train_rl
from latentite.training.fit import FitResult

RL_OVERRIDES = [
    "experiment=prototypes/rl_density",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=12",
    "trainer.num_sanity_val_steps=0",
    "data.batch_size=4",
    "data.eval_batch_size=64",
    "rl_module.sampling.steps=12",
    "rl_module.rl_configs.num_train_steps=4",
    "rl_module.rl_configs.num_minibatches=4",
    "rl_module.rl_configs.clip_ratio=5e-3",
    "rl_module.rl_configs.kl_weight=0.02",
    "rl_module.optimizer.lr=4e-4",
    # No more pay beyond what dense minerals have: without it collapsed cells would be the best.
    "rl_module.reward_fn.components.density.cap=12.0",
    # Against density of unit weight, which would outweigh it (docs/rl.md).
    "rl_module.reward_fn.components.validity.weight=4.0",
]
"""What differs from the experiment: twelve rollouts of 64 crystals."""

JUDGED_STEPS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Means over the sampled crystals that can be; nothing is sampled again."""

    reward: float
    """As trained: density up to its cap, and validity."""
    density: float
    """g/cm^3, without cap."""
    valid: float
    """Share of SMACT-valid compositions."""
    unusable: float
    """Share of all that cannot be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reinforced:
    """What the stage leaves."""

    fit: FitResult
    num_judged: int
    before: Judgement
    after: Judgement
    picture: Path

    def lines(self) -> list[str]:
        """What the demo prints."""
        before, after = self.before, self.after
        return [
            f"Reinforcement learning for density, {self.num_judged} crystals of the same seeds before and after:",
            f"  reward {before.reward:.2f} -> {after.reward:.2f}, "
            f"mean density {before.density:.2f} -> {after.density:.2f} g/cm^3",
            f"  SMACT-valid {before.valid:.0%} -> {after.valid:.0%}, "
            f"unusable {before.unusable:.0%} -> {after.unusable:.0%}",
        ]


def demo_rl_config(run_dir: Path, ldm_path: Path, *, seed: int) -> TrainRLConfig:
    """The experiment `prototypes/rl_density`, made short, from that model."""
    values = compose("train_rl", [*RL_OVERRIDES, f"seed={seed}"])
    values["rl_module"]["ldm_ckpt_path"] = str(ldm_path)
    return load(TrainRLConfig, values | {"run_dir": str(run_dir)})


def reinforce(config: TrainRLConfig, picture: Path, *, seconds: float, num_samples: int) -> Reinforced:
    """Train for at most so many seconds, judge before and after, draw the reward.

    Args:
        config: of the run.
        picture: where the curve goes.
        seconds: wished; a slow machine may take `SLOWEST` times as many.
        num_samples: crystals that are judged, from seeds that training does not use.

    Raises:
        KeyboardInterrupt: when the training was interrupted; its checkpoint is saved.
    """
    base = config.rl_module.ldm_ckpt_path
    assert base is not None
    config.trainer.max_time = max(1, int(SLOWEST * seconds))
    before = judge(base, config, num_samples)
    fit = finished(train_rl(config))
    draw_reward_curve(
        fit.run_dir / "metrics.csv", picture, units={"density": "g/cm$^3$", "validity": "share"}
    )
    after = judge(fit.last_path, config, num_samples)
    return Reinforced(fit=fit, num_judged=num_samples, before=before, after=after, picture=picture)


def judge(checkpoint: str | Path, config: TrainRLConfig, num_samples: int) -> Judgement:
    """Sample as `latentite sample` does and ask the rewards of the run."""
    wanted = GenerateConfig(ckpt=checkpoint, num_samples=num_samples, no_replace=True)
    found = generate_from(wanted, {"steps": JUDGED_STEPS})
    assert found.crystals is not None, "kept in memory"
    means = Rewards.build(config.rl_module.reward_fn)(found.crystals).means()
    return Judgement(
        reward=means["total"],
        density=means["density/raw"],
        valid=means["validity/raw"],
        unusable=1.0 - len(found.crystals) / num_samples,
    )
