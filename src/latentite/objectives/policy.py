"""The third stage's objective: GRPO, PPO and REINFORCE as choices of one loss over denoising decisions.

For a decision with log-ratio l = log p_new - log p_old and a crystal's advantage A the surrogate is

    GRPO, PPO     -min(r A, clip(r, 1 - c, 1 + c) A),  r = exp(l)    (Schulman et al. 2017, equation 7)
    REINFORCE     -l A, whose gradient is that of -A log p           (Williams 1992)

and KL to the frozen reference and an entropy bonus are added. The algorithms differ in surrogate and baseline:
GRPO normalises within a group, REINFORCE leaves one out, PPO takes running statistics.

Departures, all algorithms:
1. The advantage of the clean crystal stands at every decision; no discount (as DDPO, Black et al. 2023).
2. A log-ratio is the mean over a crystal's entries, not their sum (`per_entry`; as DDPO's code and Chemeleon2),
   so that clip and weights mean the same for 2 atoms and for 20. Off, it is the exact log-ratio.
3. The last step of a chain adds no noise, hence is no decision.
4. In a rollout's first update the policy is still the one that drew: r is then 1 to the bit, not to rounding. Where
   rewards overlap the next rollout (`rl_module.reward_workers`), that one is drawn before the update by this one: all
   its updates are off-policy by one rollout, and r starts from the probabilities of the policy that drew it.
5. Best-of-n (`best_of`): more crystals are drawn and judged than are trained. Advantages are those among all that were
   drawn, hence have zero mean over these only: what is kept is compared with what the policy does, and the best are
   not told to be worse than each other. It is the gradient for a reward of which the middle (and, with
   `keep=best`, the low end) is flat; `extremes` as down-sampled rollouts (Xu et al. 2025, arXiv 2504.13818).
6. Replay of the best (`rl_module.replay`, not of REINFORCE): trajectories of earlier rollouts join the update with the
   probabilities of the policy that drew them, so that r is right and they are raised to 1 + c times those at most.
   Their advantage is measured against the rollout of now and never below zero (as self-imitation, Oh et al. 2018,
   arXiv 1806.05635): nobody is punished for what another policy did.
GRPO (Shao et al. 2024, arXiv 2402.03300):
7. KL is a term of the loss, weighted by `kl_weight`, in closed form by default; k3 on request. The paper has k3.
   k3 is evaluated at actions of the policy that drew them, without a correction after the first update.
PPO:
8. No value network and no GAE: the baseline is a running mean and scale of the rewards.
REINFORCE (with the baseline of Kool et al. 2019):
9. With several minibatches the later ones are slightly off-policy and not corrected; one inner epoch only.

Comes after `gaussian.py` and `advantages.py`; `training/rl.py` calls it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.diffusion.steps import Moments
from latentite.objectives.advantages import (
    RunningRewards,
    group_normalised,
    leave_one_out,
    normalised_by,
    places_in_group,
)
from latentite.objectives.gaussian import entropy, k3, kl_divergence, log_ratio
from latentite.objectives.terms import LossTerms, Term
from latentite.rollout import Transitions


class Algorithm(StrEnum):
    """Surrogate and baseline."""

    GRPO = "grpo"
    PPO = "ppo"
    REINFORCE = "reinforce"


class KLForm(StrEnum):
    """How the divergence from the reference is measured."""

    CLOSED = "closed"
    """Exactly: both are Gaussians."""
    K3 = "k3"
    """Estimated at the action that was drawn."""


class Baseline(StrEnum):
    """Over which crystals GRPO and REINFORCE compare rewards."""

    GROUP = "group"
    """Those of the same prompt: the same number of atoms and the same conditions."""
    BATCH = "batch"
    """All of a rollout."""


class Keep(StrEnum):
    """Which crystals of a prompt are trained, if more are drawn."""

    BEST = "best"
    EXTREMES = "extremes"
    """As many of the best as of the worst."""


class StepChoice(StrEnum):
    """Which of the denoising decisions are trained, if not all."""

    RANDOM = "random"
    """Drawn anew for every rollout."""
    EARLY = "early"
    """The first, noisiest ones."""


@dataclass(kw_only=True, slots=True)
class PolicyConfig:
    """The algorithm: `rl_module.rl_configs`. Defaults are Chemeleon2's."""

    algorithm: Algorithm = Algorithm.GRPO
    num_group_samples: int = 64
    """Crystals per prompt that are trained; `data.batch_size` is the number of prompts of a rollout."""
    best_of: int = 1
    """So many times as many are drawn and judged; 1: all are trained."""
    keep: Keep = Keep.BEST
    """Which of them are trained."""
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
    """Only steps of learned variance have an entropy that can change."""
    per_entry: bool = True
    """Log-ratios, divergences and entropies are means over a crystal's entries; off, sums."""
    num_inner_epochs: int = 1
    """How often a rollout is used."""
    num_minibatches: int = 2
    """Optimizer steps per inner epoch."""
    num_train_steps: int | None = None
    """Denoising decisions of a chain that are trained; null: all."""
    step_choice: StepChoice = StepChoice.RANDOM
    update_tokens: int = 8192
    """Most atoms in one pass of an update: its memory, not its result."""

    def __post_init__(self) -> None:
        for name in ("num_group_samples", "best_of", "num_inner_epochs", "num_minibatches", "update_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_train_steps is not None and self.num_train_steps < 1:
            raise ValueError(f"num_train_steps must be at least 1 or null, got {self.num_train_steps}")
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
        """Crystals per prompt that are drawn and judged."""
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


def compute_advantages(
    rewards: Float[Tensor, " crystal"],
    groups: Int[Tensor, " crystal"],
    config: PolicyConfig,
    running: RunningRewards,
) -> Float[Tensor, " crystal"]:
    """Advantage of each crystal of a rollout, float32.

    Args:
        rewards: finite.
        groups: number of each crystal's prompt.
        config: algorithm and baseline.
        running: statistics with these rewards counted in; PPO's baseline.
    """
    compared = torch.zeros_like(groups) if config.baseline is Baseline.BATCH else groups
    if config.algorithm is Algorithm.PPO:
        found = running.normalised(rewards)
    elif config.algorithm is Algorithm.GRPO:
        found = group_normalised(rewards, compared, scale=config.scale_advantages)
    else:
        found = leave_one_out(rewards, compared)
    return _limited(found, config)


def replay_advantages(
    replayed: Float[Tensor, " trajectory"],
    rewards: Float[Tensor, " crystal"],
    config: PolicyConfig,
    running: RunningRewards,
) -> Float[Tensor, " trajectory"]:
    """How much better earlier crystals are than the rollout of now, float32; 0 for those that are not.

    Args:
        replayed: their rewards.
        rewards: of the rollout of now, all of it.
        config: algorithm and limits.
        running: as in `compute_advantages`.
    """
    if config.algorithm is Algorithm.PPO:
        found = running.normalised(replayed)
    else:
        found = normalised_by(replayed, rewards, scale=config.scale_advantages)
    return _limited(found.clamp(min=0.0), config)


def _limited(advantages: Tensor, config: PolicyConfig) -> Tensor:
    limit = config.max_advantage
    return (advantages if limit is None else advantages.clamp(-limit, limit)).float()


def kept_crystals(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"], config: PolicyConfig
) -> Bool[Tensor, " crystal"]:
    """Which crystals are trained: `num_group_samples` of each prompt, of equal ones the first."""
    if config.best_of == 1:
        return torch.ones_like(groups, dtype=torch.bool)
    place = places_in_group(rewards, groups)
    wanted = config.num_group_samples
    if config.keep is Keep.BEST:
        return place < wanted
    return (place < wanted - wanted // 2) | (place >= config.num_drawn - wanted // 2)


def choose_steps(
    num_decisions: int, config: PolicyConfig, generator: torch.Generator
) -> Int[Tensor, " chosen"]:
    """Which decisions of a chain are trained, in order; on the generator's device.

    Raises:
        ValueError: when there are fewer decisions than are to be trained.
    """
    every = torch.arange(num_decisions, device=generator.device)
    wanted = config.num_train_steps
    if wanted is None:
        return every
    if wanted > num_decisions:
        raise ValueError(
            f"num_train_steps must be at most {num_decisions}, the decisions of this chain (its steps but the last), "
            f"got {wanted}"
        )
    if config.step_choice is StepChoice.EARLY:
        return every[:wanted]
    drawn = torch.randperm(num_decisions, generator=generator, device=generator.device)[:wanted]
    return drawn.sort().values


def policy_terms(
    rows: Transitions,
    new: Moments,
    reference: Moments | None,
    advantages: Float[Tensor, " row"],
    config: PolicyConfig,
    *,
    is_first: Bool[Tensor, " row"],
) -> LossTerms:
    """The objective of some decisions; what is only for the log has weight 0.

    Args:
        rows: the decisions.
        new: the policy that is trained, at their states.
        reference: the frozen one; None where `kl_weight` is 0.
        advantages: of each row's crystal.
        config: algorithm and weights.
        is_first: of each row, whether the policy has not moved since it drew this decision.
    """
    is_own = is_first[:, None, None]
    old = Moments(
        mean=torch.where(is_own, new.mean.detach(), rows.old.mean),
        std=torch.where(is_own, torch.as_tensor(new.std).detach(), torch.as_tensor(rows.old.std)),
    )
    log_r = log_ratio(rows.next_states, new, old, rows.mask, per_entry=config.per_entry)
    ratio = log_r.exp()
    clip = config.clip_ratio
    if config.algorithm is Algorithm.REINFORCE:
        surrogate = -log_r * advantages
    else:
        surrogate = -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)
    is_clipped = ((ratio - 1.0) * advantages.sign() > clip).float()
    terms = {
        "policy": Term.mean_of(surrogate, 1.0),
        "entropy": Term.mean_of(entropy(new, rows.mask, per_entry=config.per_entry), -config.entropy_weight),
        "ratio": Term.mean_of(ratio.detach(), 0.0),
        "clipped": Term.mean_of(is_clipped, 0.0),
    }
    if reference is not None:
        if config.kl_form is KLForm.K3:
            to_new = log_ratio(rows.next_states, reference, new, rows.mask, per_entry=config.per_entry)
            kl = k3(to_new)
        else:
            kl = kl_divergence(new, reference, rows.mask, per_entry=config.per_entry)
        terms["kl"] = Term.mean_of(kl, config.kl_weight)
    return LossTerms(terms=terms)
