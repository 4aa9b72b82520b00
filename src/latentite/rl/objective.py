"""The third stage's objective: GRPO, PPO and REINFORCE as choices of one loss over the decisions of a policy.

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
5. Best-of-n (`best_of`): more crystals are drawn, and get rewards, than are trained. Advantages are those among all
   that were drawn, hence have zero mean over these only: what is kept is compared with what the policy does, and the
   best are not told to be worse than each other. It is the gradient for a reward of which the middle (and, with
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
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.generators.policy import Decision
from latentite.objectives.terms import LossTerms, Term
from latentite.rl.config import Algorithm, Baseline, Keep, KLForm, PolicyConfig, StepChoice


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
        advantages = running.normalised(rewards)
    elif config.algorithm is Algorithm.GRPO:
        advantages = group_normalised(rewards, compared, scale=config.scale_advantages)
    else:
        advantages = leave_one_out(rewards, compared)
    return _limited(advantages, config)


def replay_advantages(
    replayed: Float[Tensor, " trajectory"],
    rewards: Float[Tensor, " crystal"],
    config: PolicyConfig,
    running: RunningRewards,
) -> Float[Tensor, " trajectory"]:
    """Advantages of earlier crystals over the rollout of now, float32; 0 for those that are not better.

    Args:
        replayed: their rewards.
        rewards: of the rollout of now, all of it.
        config: algorithm and limits.
        running: as in `compute_advantages`.
    """
    if config.algorithm is Algorithm.PPO:
        advantages = running.normalised(replayed)
    else:
        advantages = normalised_by(replayed, rewards, scale=config.scale_advantages)
    return _limited(advantages.clamp(min=0.0), config)


def _limited(advantages: Tensor, config: PolicyConfig) -> Tensor:
    limit = config.max_advantage
    return (advantages if limit is None else advantages.clamp(-limit, limit)).float()


def kept_crystals(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"], config: PolicyConfig
) -> Bool[Tensor, " crystal"]:
    """Marks the crystals that are trained: `num_group_samples` of each prompt, of equal ones the first."""
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
    """Decisions of a trajectory that are trained, in order, on the generator's device; a short one is trained whole."""
    every = torch.arange(num_decisions, device=generator.device)
    wanted = config.num_train_steps
    if wanted is None or wanted >= num_decisions:
        return every
    if config.step_choice is StepChoice.EARLY:
        return every[:wanted]
    drawn = torch.randperm(num_decisions, generator=generator, device=generator.device)[:wanted]
    return drawn.sort().values


def policy_terms(decisions: Decision, advantages: Float[Tensor, " row"], config: PolicyConfig) -> LossTerms:
    """The objective of some decisions; what is only for the log has weight 0.

    Args:
        decisions: under the policy that is trained; compared with the reference where `kl_weight` is not 0.
        advantages: of each row's trajectory.
        config: algorithm and weights.

    Raises:
        ValueError: when KL is wanted in a closed form that the policy does not have.
    """
    ratio, clip, advantage = decisions.log_ratio.exp(), config.clip_ratio, advantages.unsqueeze(-1)
    if config.algorithm is Algorithm.REINFORCE:
        surrogate = -decisions.log_ratio * advantage
    else:
        surrogate = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)
    is_clipped = ((ratio - 1.0) * advantage.sign() > clip).float()
    values = {
        "policy": (surrogate, 1.0),
        "entropy": (decisions.entropy, -config.entropy_weight),
        "ratio": (ratio.detach(), 0.0),
        "clipped": (is_clipped, 0.0),
    }
    if decisions.reference_log_ratio is not None:
        kl = k3(decisions.reference_log_ratio) if config.kl_form is KLForm.K3 else decisions.kl
        if kl is None:
            raise ValueError(
                "rl_configs.kl_form must be k3 for a policy whose KL has no closed form, got closed"
            )
        values["kl"] = (kl, config.kl_weight)
    count = decisions.is_real.sum().float()
    return LossTerms(
        terms={
            name: Term(
                sum=torch.where(decisions.is_real, value.float(), 0.0).sum(), count=count, weight=weight
            )
            for name, (value, weight) in values.items()
        }
    )


def k3(log_ratio_to_new: Float[Tensor, "*decision"]) -> Float[Tensor, "*decision"]:
    """Estimator of KL(new || reference) from actions of the new policy: r - 1 - log r, r = p_reference / p_new.

    Schulman 2020, "Approximating KL divergence"; never negative, unbiased.

    Args:
        log_ratio_to_new: log p_reference(action) - log p_new(action).
    """
    return log_ratio_to_new.expm1() - log_ratio_to_new


EPSILON = 1e-6
"""Spread of rewards below which a group says nothing: its advantages are 0 rather than rounding blown up."""


def group_normalised(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"], *, scale: bool = True
) -> Float[Tensor, " crystal"]:
    """(r - mean of its group) / std of its group; GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    Args:
        rewards: of each crystal.
        groups: number of each crystal's group, from 0.
        scale: off, only the mean is taken away (Liu et al. 2025, "Dr. GRPO", arXiv 2503.20783).
    """
    count, centred = _centred(rewards, groups)
    if not scale:
        return centred
    std = (_sums(centred**2, groups) / count).sqrt()
    return torch.where(std > EPSILON, 1.0 / std.clamp(min=EPSILON), 0.0)[groups] * centred


def leave_one_out(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"]
) -> Float[Tensor, " crystal"]:
    """r - mean of the others of its group; RLOO (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740)."""
    count, centred = _centred(rewards, groups)
    return centred * (count / (count - 1.0))[groups]


def normalised_by(
    values: Float[Tensor, " value"], rewards: Float[Tensor, " crystal"], *, scale: bool = True
) -> Float[Tensor, " value"]:
    """(v - mean of the rewards) / std of the rewards: others measured by what a rollout has reached."""
    rewards = rewards.double()
    centred = values.double() - rewards.mean()
    if not scale:
        return centred
    std = rewards.std(correction=0)
    return centred / std if std > EPSILON else torch.zeros_like(centred)


def places_in_group(
    rewards: Float[Tensor, " crystal"], groups: Int[Tensor, " crystal"]
) -> Int[Tensor, " crystal"]:
    """Place of each crystal among its group, the best one 0; of equal ones the first is better."""
    by_reward = rewards.argsort(descending=True, stable=True)
    order = by_reward[groups[by_reward].argsort(stable=True)]
    sizes = torch.bincount(groups)
    firsts = sizes.cumsum(0) - sizes
    place = torch.arange(len(groups), device=groups.device) - firsts[groups[order]]
    return torch.empty_like(place).scatter(0, order, place)


def _sums(values: Tensor, groups: Tensor) -> Tensor:
    return values.new_zeros(int(groups.max()) + 1).index_add(0, groups, values)


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Size of each group, and each reward less its group's mean, in float64."""
    rewards = rewards.double()
    count = _sums(torch.ones_like(rewards), groups)
    return count, rewards - (_sums(rewards, groups) / count)[groups]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningRewards:
    """Exponential averages of the rewards of a run, as a baseline that needs no group."""

    state: Float[Tensor, "3"]
    """Averages of reward and squared reward, both biased towards 0, and the weight that corrects them."""

    @staticmethod
    def empty() -> RunningRewards:
        """Before the first rewards."""
        return RunningRewards(state=torch.zeros(3, dtype=torch.float64))

    def updated(self, rewards: Float[Tensor, " crystal"], decay: float) -> RunningRewards:
        """After the rewards of one rollout."""
        values = rewards.double()
        now = torch.stack([values.mean(), (values**2).mean(), values.new_ones(())]).to(self.state.device)
        return RunningRewards(state=decay * self.state + (1.0 - decay) * now)

    def normalised(self, rewards: Float[Tensor, " crystal"]) -> Float[Tensor, " crystal"]:
        """(r - running mean) / running std, with these rewards counted in before (`updated`)."""
        mean, square = (self.state[:2] / self.state[2].clamp(min=EPSILON)).to(rewards.device)
        std = (square - mean**2).clamp(min=0.0).sqrt()
        centred = rewards.double() - mean
        return centred / std if std > EPSILON else torch.zeros_like(centred)
