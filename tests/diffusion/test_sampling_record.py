"""What samplers record, where they start, and tokens that are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gaussian_mixture import make_mixture
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import Normal

from latentite.diffusion.noise import CrystalNoise
from latentite.diffusion.samplers import (
    AnySchedule,
    Known,
    Sampled,
    SamplerKind,
    noised,
    sample,
    start_level,
)
from latentite.diffusion.schedule import FlowSchedule, Spacing, Target, ddpm_schedule, respace, to_x0
from latentite.diffusion.steps import (
    Moments,
    SamplerSettings,
    Variance,
    ddim_moments,
    ddpm_moments,
    euler_moments,
    flow_sde_moments,
    learned_log_variance,
    posterior_mean,
    split_output,
    transition_log_prob,
)

TRAINING = ddpm_schedule()
FLOWS = (SamplerKind.EULER, SamplerKind.HEUN, SamplerKind.FLOW_SDE)
SIZES = [3, 1, 5]
MASK = torch.arange(5) < torch.tensor(SIZES)[:, None]
MOMENTS = {
    SamplerKind.DDPM: ddpm_moments,
    SamplerKind.DDIM: ddim_moments,
    SamplerKind.EULER: euler_moments,
    SamplerKind.FLOW_SDE: flow_sde_moments,
}


def _schedule(kind: SamplerKind, num_steps: int) -> AnySchedule:
    return FlowSchedule(num_steps=num_steps) if kind in FLOWS else respace(TRAINING, num_steps)


def _noise() -> CrystalNoise:
    return CrystalNoise([1, 2, 3], num_atoms=SIZES, num_channels=4)


def _network(kind: SamplerKind, state: Tensor, time: Tensor) -> Tensor:
    prediction = torch.tanh(state + time[:, None, None] / 500.0)
    return prediction if kind in FLOWS else torch.cat([prediction, torch.sin(state)], dim=-1)


SETTINGS = SamplerSettings(variance=Variance.LEARNED_RANGE, eta=0.8)


def _run(kind: SamplerKind, num_steps: int = 12, **options: object) -> Sampled:
    noise = _noise()
    return sample(
        kind,
        lambda state, time: _network(kind, state, time),
        noise.start(),
        MASK,
        schedule=_schedule(kind, num_steps),
        noise=noise,
        settings=SETTINGS,
        **options,
    )


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_records_hold_the_walk_and_cost_no_change(kind: SamplerKind) -> None:
    plain, walked, full = _run(kind), _run(kind, trajectory=True), _run(kind, record=True)
    assert plain.states is None
    assert walked.means is None
    assert torch.equal(plain.latents, full.latents)
    assert torch.equal(walked.states, full.states)
    assert full.states.shape == (13, 3, 5, 4)
    assert full.means.shape == full.stds.shape == (12, 3, 5, 4)
    assert full.log_probs.shape == (12, 3)
    assert torch.equal(full.states[0], _noise().start())
    assert torch.equal(full.states[-1], full.latents)
    assert torch.equal(full.means[-1], full.latents), "the last step adds no noise"
    noise = _noise()
    for count in range(12):
        again = full.means[count] + full.stds[count] * noise(count)
        torch.testing.assert_close(again, full.states[count + 1])


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_log_probabilities_are_those_of_torch(kind: SamplerKind) -> None:
    """Regression: DDIM with eta 0 gave NaN log-probabilities."""
    full = _run(kind, record=True)
    assert torch.isfinite(full.log_probs).all()
    for count in range(12):
        for row, size in enumerate(SIZES):
            std = full.stds[count, row, :size]
            if (std == 0).all():
                assert full.log_probs[count, row] == 0.0
                continue
            law = Normal(full.means[count, row, :size].double(), std.double())
            expected = law.log_prob(full.states[count + 1, row, :size].double()).sum()
            assert float(full.log_probs[count, row]) == pytest.approx(float(expected), rel=1e-4, abs=1e-3)
    is_noisy = kind in (SamplerKind.DDPM, SamplerKind.DDIM, SamplerKind.FLOW_SDE)
    assert (full.log_probs[:-1] != 0).all() == is_noisy


@pytest.mark.parametrize("kind", list(MOMENTS))
def test_moments_can_be_had_again_with_one_level_per_crystal(kind: SamplerKind) -> None:
    """Reinforcement learning flattens steps and crystals; before any update the ratio must be one."""
    full = _run(kind, record=True)
    schedule = _schedule(kind, 12)
    levels = full.levels.repeat_interleave(3)
    states, nexts = full.states[:-1].flatten(0, 1), full.states[1:].flatten(0, 1)
    many = schedule.at(levels)
    time = torch.as_tensor(many.time)[:, 0, 0]
    moments = MOMENTS[kind](_network(kind, states, time), states, many, SETTINGS)
    mask = MASK.repeat(12, 1)
    log_probs = transition_log_prob(nexts, moments, mask).view(12, 3)
    torch.testing.assert_close(log_probs, full.log_probs, rtol=1e-4, atol=2e-3)
    means = torch.where(mask[..., None], moments.mean, 0.0).view_as(full.means)
    torch.testing.assert_close(means, full.means, rtol=1e-5, atol=1e-5)


def test_certain_steps_have_gradient_zero_not_nan() -> None:
    mean = torch.zeros(1, 2, 3, requires_grad=True)
    std = torch.tensor([0.0, 1.0, 2.0]).expand(1, 2, 3)
    mask = torch.tensor([[True, False]])
    value = transition_log_prob(torch.ones(1, 2, 3), Moments(mean=mean, std=std), mask)
    (gradient,) = torch.autograd.grad(value.sum(), mean)
    assert gradient[0, 0].tolist() == [0.0, 1.0, 0.25]
    assert (gradient[0, 1] == 0).all()
    assert float(value.detach()) == pytest.approx(
        float(Normal(0.0, 1.0).log_prob(torch.tensor(1.0)) + Normal(0.0, 2.0).log_prob(torch.tensor(1.0)))
    )


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_known_tokens_come_out_exactly_and_are_noised_on_the_way(kind: SamplerKind) -> None:
    noise = _noise()
    given = torch.where(MASK[..., None], torch.randn(3, 5, 4), 0.0)
    known_mask = torch.tensor([[True, False, True, False, False], [False] * 5, [True] * 5])
    known = Known(latents=given, mask=known_mask, noise=noise.known)
    full, free = _run(kind, known=known, record=True), _run(kind, record=True)
    assert torch.equal(full.latents[known_mask], given[known_mask])
    schedule = _schedule(kind, 12)
    for count, level in enumerate([*range(11, -1, -1)]):
        expected = noised(given, noise.known(count), schedule, level)
        torch.testing.assert_close(full.states[count][known_mask], expected[known_mask])
    others = MASK & ~known_mask
    assert torch.equal(full.latents[others], free.latents[others]), "this network keeps tokens apart"
    assert (full.log_probs[:, 2] == 0).all(), "nothing was drawn for a crystal that is wholly known"
    assert torch.equal(full.log_probs[:, 1], free.log_probs[:, 1])
    assert (full.latents[~MASK] == 0).all()


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_a_weak_start_stays_near_the_crystal_and_a_full_one_forgets_it(kind: SamplerKind) -> None:
    mixture = make_mixture(2, 4)
    denoise = mixture.velocity() if kind in FLOWS else mixture.ddpm_denoiser(TRAINING, Target.EPSILON)
    schedule, noise = _schedule(kind, 50), _noise()
    given = torch.where(MASK[..., None], mixture.means[0].float(), 0.0)
    distances = []
    for strength in (0.02, 0.1, 0.3):
        level = start_level(schedule, strength)
        begin = noised(given, noise.start(), schedule, level)
        result = sample(kind, denoise, begin, MASK, schedule=schedule, noise=noise, start=level)
        assert len(result.levels) == round(50 * strength)
        distances.append(float((result.latents - given).norm()))
    assert distances[0] < distances[2]
    level = start_level(schedule, 1.0)
    assert level == 49
    full = sample(kind, denoise, noise.start(), MASK, schedule=schedule, noise=noise, start=level).latents
    free = sample(kind, denoise, noise.start(), MASK, schedule=schedule, noise=noise).latents
    assert torch.equal(full, free)


def test_strength_is_checked() -> None:
    schedule = respace(TRAINING, 50)
    assert start_level(schedule, 0.3) == 14
    assert start_level(schedule, 1e-6) == 0
    for strength in (0.0, -1.0, 1.01):
        with pytest.raises(ValueError, match="strength must be above 0"):
            start_level(schedule, strength)


def test_posterior_is_that_of_the_public_system(interop: Path) -> None:
    reference = load_file(interop / "ref_ldm.safetensors")
    state, mask = reference["ldm.dit.in_x"], reference["ldm.dit.in_mask"]
    prediction, channels = reference["ldm.dit.out_B_2N_L"].chunk(2, dim=1)
    level = TRAINING.at(reference["ldm.dit.in_t"])
    x0 = to_x0(prediction, state, level, Target.EPSILON)
    log_variance = learned_log_variance(channels, level)
    ours = {
        "pred_xstart": x0,
        "mean": posterior_mean(x0, state, level),
        "log_variance": log_variance,
        "variance": log_variance.exp(),
    }
    for name, values in ours.items():
        expected = reference[f"ldm.pmv.{name}"]
        torch.testing.assert_close(values[mask], expected[mask], rtol=1e-5, atol=1e-6)
    settings = SamplerSettings(variance=Variance.LEARNED_RANGE)
    output = torch.cat([prediction, channels], dim=-1)
    std = torch.as_tensor(ddpm_moments(output, state, level, settings).std)
    noisy = reference["ldm.dit.in_t"] > 0
    torch.testing.assert_close(std[noisy], (0.5 * reference["ldm.pmv.log_variance"]).exp()[noisy])
    assert (std[~noisy] == 0).all()
    assert split_output(output, 8)[1] is not None


def test_training_noises_as_the_public_system(interop: Path) -> None:
    reference = load_file(interop / "ref_ldm.safetensors")
    level = TRAINING.at(reference["ldm.dit.in_t"])
    state = level.alpha * reference["ldm.dit.in_x"] + level.sigma * reference["ldm.dit.in_noise"]
    torch.testing.assert_close(state, reference["ldm.train_loss.x_t"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "spacing", "eta"),
    [
        ("ddim10_eta0", SamplerKind.DDIM, Spacing.STRIDE, 0.0),
        ("ddim10_eta1", SamplerKind.DDIM, Spacing.STRIDE, 1.0),
        ("ddpm10", SamplerKind.DDPM, Spacing.EVEN, 1.0),
    ],
)
def test_trajectories_are_those_of_the_public_system(
    interop: Path, name: str, kind: SamplerKind, spacing: Spacing, eta: float
) -> None:
    """A denoiser that answers what theirs must have answered walks through their states.

    The network itself is not needed: its answer at a state follows from the mean of their next step by our
    equations for x0 (DDPM) or epsilon (DDIM); stds, states and log-probabilities must then be theirs.
    """
    reference = load_file(interop / "ref_ldm.safetensors")
    states, means, stds, log_probs, mask = (
        reference[f"ldm.{name}.{part}"] for part in ("zs", "means", "stds", "log_probs", "mask")
    )
    schedule = respace(TRAINING, 10, spacing)
    answers = _answers(kind, schedule, states.double(), means.double(), stds.double(), eta)
    calls = iter(answers)

    def noise(count: int) -> Tensor:
        return torch.nan_to_num((states[count + 1] - means[count]) / stds[count])

    sampled = sample(
        kind,
        lambda _state, _time: next(calls),
        states[0],
        mask,
        schedule=schedule,
        noise=noise,
        settings=SamplerSettings(eta=eta, variance=Variance.LEARNED_RANGE),
        record=True,
    )
    torch.testing.assert_close(sampled.states, states, rtol=1e-4, atol=1e-3)
    last = 9  # their last std is not used: no noise is added there
    torch.testing.assert_close(sampled.stds[:last][:, mask], stds[:last][:, mask], rtol=1e-5, atol=1e-6)
    if eta > 0.0:
        means_per_entry = sampled.log_probs / (mask.sum(-1) * 8)
        torch.testing.assert_close(means_per_entry[:last], log_probs[:last], rtol=1e-3, atol=1e-3)


def _answers(
    kind: SamplerKind, schedule: AnySchedule, states: Tensor, means: Tensor, stds: Tensor, eta: float
) -> list[Tensor]:
    """Epsilon (and, for DDPM, variance channels) that lead from each state to the next mean and std."""
    answers = []
    for count, step in enumerate(range(9, -1, -1)):
        level, state = schedule.at(step), states[count]
        if kind is SamplerKind.DDPM:
            x0 = (means[count] - level.mean_xt * state) / level.mean_x0
            width = level.log_beta - level.posterior_log_variance
            log_variance = 2.0 * stds[count].log()
            channels = 2.0 * (log_variance - level.posterior_log_variance) / max(width, 1e-9) - 1.0
            epsilon = (state - level.alpha * x0) / level.sigma
            answers.append(torch.cat([epsilon, torch.nan_to_num(channels, neginf=0.0)], dim=-1).float())
            continue
        # mean = a0 (x - sigma eps) / alpha + b eps, with the textbook b
        b = max(level.sigma_next**2 - eta**2 * level.posterior_variance, 0.0) ** 0.5
        ratio = level.alpha_next / level.alpha
        answers.append(((means[count] - ratio * state) / (b - ratio * level.sigma)).float())
    return answers
