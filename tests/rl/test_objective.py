"""Log-ratios, divergences, advantages and the loss against independent mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from latentite.diffusion.steps import Moments
from latentite.generators.latent.policy import entropy, gaussian_decisions, kl_divergence, log_ratio
from latentite.generators.latent.trajectories import Transitions
from latentite.generators.policy import Decision
from latentite.objectives.terms import LossTerms
from latentite.rl.config import Algorithm, Baseline, Keep, KLForm, PolicyConfig, StepChoice
from latentite.rl.objective import (
    RunningRewards,
    choose_steps,
    compute_advantages,
    group_normalised,
    k3,
    kept_crystals,
    leave_one_out,
    places_in_group,
    policy_terms,
)

SIZES = torch.tensor([1, 4, 2])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(seed: int) -> Moments:
    draw = generator(seed)
    mean = torch.randn(3, 4, 2, generator=draw, dtype=torch.float64)
    std = 0.2 + torch.rand(3, 4, 2, generator=draw, dtype=torch.float64)
    std[:, :, 1] = 0.0  # a channel without noise is certain and says nothing
    return Moments(mean=mean, std=std)


MASK = torch.arange(4) < SIZES[:, None]
NEW, OLD = moments(1), moments(2)
ACTION = torch.randn(3, 4, 2, generator=generator(3), dtype=torch.float64)


def by_hand(row: int, function: object) -> Tensor:
    """A function of the noisy entries' normals of one crystal."""
    size = int(SIZES[row])
    normals = [Normal(m.mean[row, :size, 0], torch.as_tensor(m.std)[row, :size, 0]) for m in (NEW, OLD)]
    return function(*normals, ACTION[row, :size, 0])  # type: ignore[operator]  # a test's lambda


@pytest.mark.parametrize("per_entry", [False, True])
def test_gaussian_formulas_are_those_of_torch_distributions(per_entry: bool) -> None:
    found = {
        "ratio": log_ratio(ACTION, NEW, OLD, MASK, per_entry=per_entry),
        "kl": kl_divergence(NEW, OLD, MASK, per_entry=per_entry),
        "entropy": entropy(NEW, MASK, per_entry=per_entry),
    }
    wanted = {
        "ratio": lambda new, old, x: new.log_prob(x) - old.log_prob(x),
        "kl": lambda new, old, x: torch_kl(new, old),
        "entropy": lambda new, old, x: new.entropy(),
    }
    for name, function in wanted.items():
        for row, size in enumerate(SIZES.tolist()):
            total = by_hand(row, function).sum()
            torch.testing.assert_close(found[name][row], total / size if per_entry else total)


def test_equal_policies_have_ratio_one_and_no_divergence_to_the_bit() -> None:
    assert log_ratio(ACTION, NEW, NEW, MASK, per_entry=True).eq(0.0).all()
    assert kl_divergence(NEW, NEW, MASK, per_entry=True).eq(0.0).all()
    assert k3(torch.zeros(3)).eq(0.0).all()


def test_k3_estimates_the_divergence() -> None:
    """Mean over a million actions of the new policy, one dimension; never negative."""
    new, old = Normal(torch.tensor(0.3), torch.tensor(0.9)), Normal(torch.tensor(0.0), torch.tensor(1.1))
    torch.manual_seed(0)
    actions = new.sample((1_000_000,))
    found = k3(old.log_prob(actions) - new.log_prob(actions))
    assert found.min() >= 0.0
    torch.testing.assert_close(found.mean(), torch_kl(new, old), rtol=0.01, atol=0.0)


REWARDS = st.lists(st.floats(-100.0, 100.0), min_size=8, max_size=8)
GROUPS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 2])


@given(values=REWARDS)
def test_advantages_have_zero_mean_in_each_group(values: list[float]) -> None:
    rewards = torch.tensor(values)
    for found in (group_normalised(rewards, GROUPS), group_normalised(rewards, GROUPS, scale=False)):
        for group in range(3):
            torch.testing.assert_close(
                found[group == GROUPS].mean(), torch.tensor(0.0).double(), atol=1e-4, rtol=0
            )


@given(values=REWARDS, baseline=st.sampled_from(list(Baseline)), scale=st.booleans())
def test_advantages_have_zero_mean_over_what_is_compared(
    values: list[float], baseline: Baseline, scale: bool
) -> None:
    """Of GRPO and REINFORCE; without the clipping that an outlier meets (`max_advantage`)."""
    rewards = torch.tensor(values)
    for algorithm in (Algorithm.GRPO, Algorithm.REINFORCE):
        config = PolicyConfig(
            algorithm=algorithm, baseline=baseline, scale_advantages=scale, max_advantage=None
        )
        found = compute_advantages(rewards, GROUPS, config, RunningRewards.empty())
        parts = [found] if baseline is Baseline.BATCH else [found[group == GROUPS] for group in range(3)]
        for part in parts:
            assert abs(float(part.mean())) < 1e-4


@given(values=REWARDS)
def test_normalised_advantages_ignore_scale_and_shift_of_the_reward(values: list[float]) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    spread = torch.stack([rewards[g == GROUPS].std() for g in range(3)])
    if bool(((spread > 0.0) & (spread < 1e-3)).any()):
        return
    torch.testing.assert_close(
        group_normalised(3.0 * rewards - 7.0, GROUPS), group_normalised(rewards, GROUPS), atol=1e-6, rtol=1e-6
    )


def test_leave_one_out_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    found = leave_one_out(rewards, GROUPS)
    for i in range(8):
        others = rewards[(GROUPS[i] == GROUPS) & (torch.arange(8) != i)]
        torch.testing.assert_close(found[i], (rewards[i] - others.mean()).double())


def test_equal_rewards_teach_nothing() -> None:
    """Regression: a group without spread once gave NaN."""
    rewards = torch.full((8,), 0.1)
    for algorithm in Algorithm:
        running = RunningRewards.empty().updated(rewards, 0.9)
        found = compute_advantages(rewards, GROUPS, PolicyConfig(algorithm=algorithm), running)
        assert found.abs().max() < 1e-5


def test_running_statistics_are_not_biased_towards_zero_at_first() -> None:
    rewards = torch.tensor([1.0, 3.0])
    running = RunningRewards.empty().updated(rewards, 0.9)
    torch.testing.assert_close(running.normalised(rewards), torch.tensor([-1.0, 1.0]).double())
    later = running.updated(rewards + 10.0, 0.9)
    assert later.normalised(rewards + 10.0).mean() > 0.5, "better than before is an advantage"


def rows(old: Moments = OLD) -> Transitions:
    return Transitions(
        crystal=torch.arange(3),
        states=ACTION,
        next_states=ACTION,
        levels=torch.ones(3, dtype=torch.long),
        mask=MASK,
        old=old,
    )


def terms_of(
    asked: Transitions,
    new: Moments,
    reference: Moments | None,
    advantages: Tensor,
    config: PolicyConfig,
    *,
    is_on_policy: Tensor,
) -> LossTerms:
    """The objective of Gaussian decisions."""
    decisions = gaussian_decisions(
        asked, new, reference, is_on_policy=is_on_policy, per_entry=config.per_entry
    )
    return policy_terms(decisions, advantages, config)


ADVANTAGES = torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_before_the_first_update_all_algorithms_have_one_gradient(algorithm: Algorithm) -> None:
    """Ratio 1 to the bit, loss -mean A (0 for REINFORCE), gradient that of -A log p."""
    mean = NEW.mean.clone().requires_grad_()
    new = Moments(mean=mean, std=NEW.std)
    config = PolicyConfig(algorithm=algorithm, kl_weight=0.0)
    terms = terms_of(rows(), new, None, ADVANTAGES, config, is_on_policy=torch.ones(3, dtype=torch.bool))
    assert terms.values()["ratio"] == 1.0
    assert terms.values()["clipped"] == 0.0
    wanted = 0.0 if algorithm is Algorithm.REINFORCE else -float(ADVANTAGES.mean())
    assert float(terms.values()["policy"].detach()) == pytest.approx(wanted, abs=1e-7)
    (found,) = torch.autograd.grad(terms.total(), mean)
    other = NEW.mean.clone().requires_grad_()
    size = SIZES.double()
    log_prob = [
        Normal(other[i, :n, 0], torch.as_tensor(NEW.std)[i, :n, 0]).log_prob(ACTION[i, :n, 0]).sum() / n
        for i, n in enumerate(size.int().tolist())
    ]
    (by_log_prob,) = torch.autograd.grad(-(ADVANTAGES * torch.stack(log_prob)).mean(), other)
    torch.testing.assert_close(found, by_log_prob, rtol=1e-5, atol=1e-7)


def test_clipping_stops_the_gradient_only_where_the_ratio_has_gone_too_far_already() -> None:
    """Crystal 0 wants more and has gone too far; 1 wants less and has gone too far; 2 has gone the wrong way."""
    gone = torch.tensor([0.5, -0.5, -0.5], dtype=torch.float64)
    std = torch.ones(3, 4, 2, dtype=torch.float64)
    zero = torch.zeros(3, 4, 2, dtype=torch.float64)
    mean = (0.5 * gone)[:, None, None].expand(3, 4, 2).clone().requires_grad_()
    decisions = Transitions(
        crystal=torch.arange(3),
        states=zero,
        next_states=torch.ones(3, 4, 2, dtype=torch.float64),
        levels=torch.ones(3, dtype=torch.long),
        mask=MASK,
        old=Moments(mean=zero, std=std),
    )
    config = PolicyConfig(kl_weight=0.0, clip_ratio=0.1)
    advantages = torch.tensor([1.0, -1.0, 1.0])
    terms = terms_of(
        decisions,
        Moments(mean=mean, std=std),
        None,
        advantages,
        config,
        is_on_policy=torch.zeros(3, dtype=torch.bool),
    )
    (found,) = torch.autograd.grad(terms.total(), mean)
    assert found[0].eq(0).all()
    assert found[1].eq(0).all()
    assert found[2, 0].lt(0).all()
    assert float(terms.values()["clipped"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("form", list(KLForm))
def test_at_the_reference_the_divergence_and_its_gradient_are_zero(form: KLForm) -> None:
    mean = NEW.mean.clone().requires_grad_()
    new = Moments(mean=mean, std=NEW.std)
    config = PolicyConfig(kl_form=form, kl_weight=2.0)
    terms = terms_of(rows(), new, NEW, torch.zeros(3), config, is_on_policy=torch.ones(3, dtype=torch.bool))
    assert terms.values()["kl"] == 0.0
    (found,) = torch.autograd.grad(terms.terms["kl"].sum, mean)
    assert found.abs().max() < 1e-12
    away = terms_of(rows(), new, OLD, torch.zeros(3), config, is_on_policy=torch.ones(3, dtype=torch.bool))
    assert away.values()["kl"] > 0.0


def test_the_trained_steps_are_those_that_were_asked_for() -> None:
    config = PolicyConfig(num_train_steps=4, step_choice=StepChoice.EARLY)
    assert choose_steps(9, config, generator(0)).tolist() == [0, 1, 2, 3]
    config.step_choice = StepChoice.RANDOM
    drawn = [choose_steps(9, config, generator(seed)).tolist() for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 4
    assert len({tuple(steps) for steps in drawn}) > 1
    assert choose_steps(9, PolicyConfig(), generator(0)).tolist() == list(range(9))
    assert choose_steps(3, config, torch.Generator()).tolist() == [0, 1, 2]


def test_settings_under_which_nothing_can_be_compared_are_refused() -> None:
    for algorithm in (Algorithm.GRPO, Algorithm.REINFORCE):
        with pytest.raises(ValueError, match=f"num_group_samples must be at least 2 for {algorithm}"):
            PolicyConfig(algorithm=algorithm, num_group_samples=1)
        with pytest.raises(ValueError, match="at least 2, got a rollout of 1 crystal"):
            PolicyConfig(algorithm=algorithm, num_group_samples=1, baseline=Baseline.BATCH).check_rollout(1)
    PolicyConfig(algorithm=Algorithm.PPO, num_group_samples=1).check_rollout(1)
    with pytest.raises(ValueError, match="num_inner_epochs must be 1 for reinforce"):
        PolicyConfig(algorithm=Algorithm.REINFORCE, num_inner_epochs=2)


def test_each_row_starts_from_the_policy_that_drew_it() -> None:
    """Rows of this policy have ratio 1 to the bit, others that of the stored probabilities."""
    is_on_policy = torch.tensor([True, False, True])
    config = PolicyConfig(algorithm=Algorithm.REINFORCE, kl_weight=0.0, per_entry=False)
    advantages = torch.tensor([2.0, 1.0, 4.0])
    terms = terms_of(rows(), NEW, None, advantages, config, is_on_policy=is_on_policy)
    log_r = by_hand(1, lambda new, old, x: new.log_prob(x) - old.log_prob(x)).sum()
    assert float(terms.values()["policy"]) == pytest.approx(-float(log_r) / 3, rel=1e-5)


def test_the_best_of_each_group_are_kept_or_the_extremes() -> None:
    rewards = torch.tensor([3.0, 1.0, 7.0, 2.0, 1.0, 5.0, 4.0, 0.0])
    groups = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])  # 3 7 5 4 and 1 2 1 0
    assert places_in_group(rewards, groups).tolist() == [3, 1, 0, 0, 2, 1, 2, 3], "of equal ones the first"
    best = PolicyConfig(num_group_samples=2, best_of=2, keep=Keep.BEST)
    assert kept_crystals(rewards, groups, best).nonzero().flatten().tolist() == [1, 2, 3, 5]
    extremes = PolicyConfig(num_group_samples=2, best_of=2, keep=Keep.EXTREMES)
    assert kept_crystals(rewards, groups, extremes).nonzero().flatten().tolist() == [0, 2, 3, 7]
    assert kept_crystals(rewards, groups, PolicyConfig(num_group_samples=4)).all()


@given(values=st.lists(st.floats(-10.0, 10.0), min_size=12, max_size=12), keep=st.sampled_from(list(Keep)))
def test_as_many_of_each_group_are_kept_as_are_trained(values: list[float], keep: Keep) -> None:
    rewards, groups = torch.tensor(values), torch.arange(12) % 2
    kept = kept_crystals(rewards, groups, PolicyConfig(num_group_samples=3, best_of=2, keep=keep))
    for group in range(2):
        mine = rewards[groups == group].sort(descending=True).values
        wanted = mine[:3] if keep is Keep.BEST else mine[[0, 1, 5]]
        assert rewards[kept & (groups == group)].sort(descending=True).values.equal(wanted)


def test_one_trained_of_several_drawn_can_be_compared() -> None:
    PolicyConfig(num_group_samples=1, best_of=4)
    with pytest.raises(ValueError, match="best_of must be at least 1, got 0"):
        PolicyConfig(best_of=0)


def test_a_closed_form_of_kl_that_a_policy_does_not_have_is_refused() -> None:
    zeros = torch.zeros(2, 1)
    decisions = Decision(
        is_real=torch.ones(2, 1, dtype=torch.bool),
        log_ratio=zeros,
        entropy=zeros,
        reference_log_ratio=zeros - 1.0,
    )
    with pytest.raises(
        ValueError, match="kl_form must be k3 for a policy whose KL has no closed form, got closed"
    ):
        policy_terms(decisions, torch.ones(2), PolicyConfig())
    terms = policy_terms(decisions, torch.ones(2), PolicyConfig(kl_form=KLForm.K3))
    assert float(terms.values()["kl"]) == pytest.approx(math.exp(-1.0))
