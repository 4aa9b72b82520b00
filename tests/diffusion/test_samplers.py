"""Samplers against the exact score of a Gaussian mixture, and what all of them promise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gaussian_mixture import Mixture, make_mixture
from torch import Tensor

from latentite.diffusion.noise import CrystalNoise, crystal_seeds
from latentite.diffusion.samplers import STEPS, AnySchedule, Sampled, SamplerKind, sample
from latentite.diffusion.schedule import (
    FlowSchedule,
    Schedule,
    ScheduleKind,
    Spacing,
    Target,
    ddpm_schedule,
    respace,
)
from latentite.diffusion.steps import Denoise, SamplerSettings, Variance

TRAINING = ddpm_schedule()
FLOWS = (SamplerKind.EULER, SamplerKind.HEUN, SamplerKind.FLOW_SDE)
DDPMS = (SamplerKind.DDPM, SamplerKind.DDIM, SamplerKind.DPM_SOLVER)
DETERMINISTIC = (SamplerKind.DPM_SOLVER, SamplerKind.EULER, SamplerKind.HEUN)


def _schedule(kind: SamplerKind, num_steps: int, spacing: Spacing = Spacing.EVEN) -> AnySchedule:
    return FlowSchedule(num_steps=num_steps) if kind in FLOWS else respace(TRAINING, num_steps, spacing)


def _sample_mixture(
    mixture: Mixture,
    kind: SamplerKind,
    schedule: AnySchedule,
    settings: SamplerSettings,
    training: Schedule = TRAINING,
    num_crystals: int = 400,
) -> Tensor:
    """Tokens of crystals with 1 to 20 atoms, `[atom channel]`."""
    num_atoms = [1 + k % 20 for k in range(num_crystals)]
    noise = CrystalNoise(
        crystal_seeds(1, range(num_crystals)), num_atoms=num_atoms, num_channels=mixture.means.shape[1]
    )
    mask = torch.arange(20) < torch.tensor(num_atoms)[:, None]
    denoise = mixture.velocity() if kind in FLOWS else mixture.ddpm_denoiser(training, settings.target)
    sampled = sample(kind, denoise, noise.start(), mask, schedule=schedule, noise=noise, settings=settings)
    assert (sampled.latents[~mask] == 0).all()
    return sampled.latents[mask].double()


def _check_moments(mixture: Mixture, tokens: Tensor) -> None:
    """Within 5 standard errors (of n draws) and the 1 % that discretisation may cost."""
    spread = mixture.covariance.diagonal().sqrt()
    error = 5.0 / len(tokens) ** 0.5 + 0.01
    assert ((tokens.mean(0) - mixture.mean).abs() < error * spread).all()
    scale = torch.outer(spread, spread)
    assert ((tokens.T.cov() - mixture.covariance).abs() < 1.5 * error * scale).all()


@pytest.mark.parametrize(
    ("kind", "num_steps", "settings"),
    [
        (SamplerKind.DDPM, 250, SamplerSettings(target=Target.V)),
        (SamplerKind.DDPM, 250, SamplerSettings(variance=Variance.FIXED_LARGE)),
        (SamplerKind.DDIM, 200, SamplerSettings(eta=0.0)),
        (SamplerKind.DDIM, 250, SamplerSettings(eta=1.0, target=Target.X0)),
        (SamplerKind.DDIM, 200, SamplerSettings(eta=0.5)),
        (SamplerKind.DPM_SOLVER, 40, SamplerSettings()),
        (SamplerKind.DPM_SOLVER, 40, SamplerSettings(target=Target.V)),
        (SamplerKind.EULER, 200, SamplerSettings()),
        (SamplerKind.HEUN, 40, SamplerSettings()),
        (SamplerKind.FLOW_SDE, 300, SamplerSettings(eta=1.0)),
        (SamplerKind.FLOW_SDE, 300, SamplerSettings(eta=0.5)),
    ],
)
def test_the_exact_score_recovers_mean_and_covariance(
    kind: SamplerKind, num_steps: int, settings: SamplerSettings
) -> None:
    mixture = make_mixture(3, 4)
    spacing = Spacing.LOG_SNR if kind is SamplerKind.DPM_SOLVER else Spacing.EVEN
    _check_moments(mixture, _sample_mixture(mixture, kind, _schedule(kind, num_steps, spacing), settings))


@pytest.mark.parametrize("num_channels", [2, 8])
@pytest.mark.parametrize("kind", [SamplerKind.DDIM, SamplerKind.HEUN])
def test_moments_are_recovered_in_other_dimensions(kind: SamplerKind, num_channels: int) -> None:
    mixture = make_mixture(2, num_channels, seed=1)
    _check_moments(mixture, _sample_mixture(mixture, kind, _schedule(kind, 100), SamplerSettings(eta=0.0)))


def test_moments_are_recovered_on_the_cosine_schedule() -> None:
    mixture, training = make_mixture(2, 3), ddpm_schedule(ScheduleKind.COSINE)
    tokens = _sample_mixture(
        mixture, SamplerKind.DDIM, respace(training, 200), SamplerSettings(eta=0.0), training
    )
    _check_moments(mixture, tokens)


def _errors(kind: SamplerKind, counts: list[int], training: Schedule, finest: AnySchedule) -> list[float]:
    """Root mean square distance of end points from those of a very fine integration, same starts."""
    mixture = make_mixture(3, 2)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(200, 1, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones(200, 1, dtype=torch.bool)
    settings = SamplerSettings(eta=0.0)

    def end(kind: SamplerKind, schedule: AnySchedule) -> Tensor:
        velocity = kind in FLOWS
        denoise = mixture.velocity() if velocity else mixture.ddpm_denoiser(training, Target.EPSILON)
        return sample(
            kind, denoise, start, mask, schedule=schedule, noise=_no_noise, settings=settings
        ).latents

    best = end(SamplerKind.HEUN if kind in FLOWS else SamplerKind.DPM_SOLVER, finest)
    errors = []
    for count in counts:
        schedule = FlowSchedule(num_steps=count) if kind in FLOWS else respace(training, count)
        errors.append(float((end(kind, schedule) - best).square().mean().sqrt()))
    return errors


def _no_noise(step: int) -> Tensor:
    raise AssertionError(f"a deterministic sampler asked for the noise of step {step}")


@pytest.mark.parametrize(("kind", "order"), [(SamplerKind.DDIM, 1), (SamplerKind.DPM_SOLVER, 2)])
def test_ddpm_solvers_converge_at_their_order(kind: SamplerKind, order: int) -> None:
    training = ddpm_schedule(num_steps=2049)
    counts = [65, 129, 257]  # 2048 is a multiple of each less one: evenly spaced without rounding
    errors = _errors(kind, counts, training, training)
    slope = math.log2(errors[0] / errors[-1]) / math.log2((counts[-1] - 1) / (counts[0] - 1))
    assert slope == pytest.approx(order, abs=0.3), errors
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("kind", "order"), [(SamplerKind.EULER, 1), (SamplerKind.HEUN, 2)])
def test_flow_solvers_converge_at_their_order(kind: SamplerKind, order: int) -> None:
    counts = [32, 64, 128]
    errors = _errors(kind, counts, TRAINING, FlowSchedule(num_steps=1500))
    slope = math.log2(errors[0] / errors[-1]) / 2.0
    assert slope == pytest.approx(order, abs=0.3), errors
    assert errors[0] > errors[1] > errors[2]


def _zero(state: Tensor, _time: Tensor) -> Tensor:
    return torch.zeros_like(state)


def _tiny(kind: SamplerKind, num_steps: int, start: int | None = None) -> Sampled:
    state = torch.full((1, 2, 1), 0.5)
    mask = torch.tensor([[True, False]])
    schedule = _schedule(kind, num_steps)
    return sample(kind, _zero, state, mask, schedule=schedule, noise=lambda _: state, start=start)


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_every_number_of_steps_runs(kind: SamplerKind) -> None:
    """All counts from 1 to 1000 through their first levels, and some of them from end to end."""
    for num_steps in range(1, 1001):
        sampled = _tiny(kind, num_steps, start=min(1, num_steps - 1))
        assert torch.isfinite(sampled.latents).all()
    for num_steps in (1, 2, 3, 7, 11, 50, 101, 333, 1000):
        sampled = _tiny(kind, num_steps)
        assert torch.isfinite(sampled.latents).all()
        assert sampled.levels.tolist() == list(range(num_steps - 1, -1, -1))


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_without_noise_the_start_alone_decides(kind: SamplerKind) -> None:
    """eta = 0 and the solvers never ask for noise; the others do, once for each noisy step."""
    asked: list[int] = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.ones(2, 3, 4)

    generator = torch.Generator().manual_seed(0)
    start, mask = torch.randn(2, 3, 4, generator=generator), torch.ones(2, 3, dtype=torch.bool)
    schedule = _schedule(kind, 9)
    for settings in (SamplerSettings(eta=0.0), SamplerSettings(eta=1.0)):
        asked.clear()
        sample(kind, _zero, start, mask, schedule=schedule, noise=noise, settings=settings)
        is_silent = kind in DETERMINISTIC or (kind is not SamplerKind.DDPM and settings.eta == 0.0)
        assert asked == ([] if is_silent else list(range(8)))


def test_one_step_gives_the_predicted_x0() -> None:
    """From the noisiest level the best single guess is E[x0 | x_T], whatever the method."""
    mixture = make_mixture(2, 3)
    start = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(5, 1, dtype=torch.bool)
    for kind in SamplerKind:
        schedule = _schedule(kind, 1)
        level = schedule.at(0)
        denoise = mixture.velocity() if kind in FLOWS else mixture.ddpm_denoiser(TRAINING, Target.EPSILON)
        sampled = sample(kind, denoise, start, mask, schedule=schedule, noise=_no_noise)
        expected = mixture.expected_x0(start, float(level.alpha), float(level.sigma))
        torch.testing.assert_close(sampled.latents, expected, rtol=1e-4, atol=1e-5)


def test_ddim_with_eta_1_has_the_variance_of_ddpm() -> None:
    mixture = make_mixture(2, 3)
    start, mask = torch.randn(4, 2, 3), torch.ones(4, 2, dtype=torch.bool)
    noise = CrystalNoise([1, 2, 3, 4], num_atoms=[2] * 4, num_channels=3)
    schedule = respace(TRAINING, 20)
    runs = [
        sample(
            kind,
            mixture.ddpm_denoiser(TRAINING, Target.EPSILON),
            start,
            mask,
            schedule=schedule,
            noise=noise,
            settings=SamplerSettings(eta=1.0),
            record=True,
        )
        for kind in (SamplerKind.DDPM, SamplerKind.DDIM)
    ]
    torch.testing.assert_close(runs[0].stds, runs[1].stds)
    torch.testing.assert_close(runs[0].states, runs[1].states, rtol=1e-4, atol=1e-4)


def test_less_noise_gathers_samples_around_the_mean() -> None:
    """One Gaussian, N(m, s^2): with all its noise the SDE gives m and s; with less of it, m and a smaller spread."""
    mean, spread, count = 1.5, 0.6, 4000

    def velocity(state: Tensor, time: Tensor) -> Tensor:  # E[eps - x0 | x] of x = (1 - t) x0 + t eps
        t = time[:, None, None] / 1000.0
        variance = (1.0 - t) ** 2 * spread**2 + t**2
        return -mean + (t - (1.0 - t) * spread**2) / variance * (state - (1.0 - t) * mean)

    start = torch.randn(count, 1, 1, generator=torch.Generator().manual_seed(0))
    noise = CrystalNoise(list(range(count)), num_atoms=[1] * count, num_channels=1)
    spreads = []
    for scale in (1.0, 0.5, 0.0):
        found = sample(
            SamplerKind.FLOW_SDE,
            velocity,
            start,
            torch.ones(count, 1, dtype=torch.bool),
            schedule=FlowSchedule(num_steps=200),
            noise=noise,
            settings=SamplerSettings(noise_scale=scale),
        ).latents
        assert float(found.mean()) == pytest.approx(mean, abs=0.05)
        spreads.append(float(found.std()))
    assert spreads[0] == pytest.approx(spread, rel=0.05)
    assert spreads[0] > 1.2 * spreads[1] > 1.2 * spreads[2] > 0.0


def _per_token_network(num_channels: int) -> Denoise:
    def denoise(state: Tensor, time: Tensor) -> Tensor:
        prediction = torch.tanh(state + time[:, None, None] / 500.0)
        return torch.cat([prediction, torch.sin(state)], dim=-1)[..., : 2 * num_channels]

    return denoise


@pytest.mark.parametrize("kind", list(SamplerKind))
@pytest.mark.parametrize("batch_size", [1, 7])
def test_sampling_is_independent_of_batch_size_and_padding(kind: SamplerKind, batch_size: int) -> None:
    sizes, seeds = [1 + (3 * k) % 8 for k in range(21)], crystal_seeds(0, range(21))
    network = _per_token_network(4)
    if kind in FLOWS:
        network = lambda state, time: torch.tanh(state + time[:, None, None] / 500.0)  # noqa: E731
    settings = SamplerSettings(variance=Variance.LEARNED_RANGE)

    def run(rows: range, num_tokens: int) -> Tensor:
        atoms = [sizes[k] for k in rows]
        noise = CrystalNoise([seeds[k] for k in rows], num_atoms=atoms, num_channels=4, num_tokens=num_tokens)
        mask = torch.arange(num_tokens) < torch.tensor(atoms)[:, None]
        return sample(
            kind,
            network,
            noise.start(),
            mask,
            schedule=_schedule(kind, 13),
            noise=noise,
            settings=settings,
        ).latents

    whole = run(range(21), 12)
    for begin in range(0, 21, batch_size):
        rows = range(begin, begin + batch_size)
        width = max(sizes[k] for k in rows)
        torch.testing.assert_close(run(rows, width), whole[begin : begin + batch_size, :width])


@pytest.mark.parametrize("kind", list(SamplerKind))
def test_junk_in_the_padding_reaches_nothing(kind: SamplerKind) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    start = torch.where(mask[..., None], torch.ones(2, 3, 4), math.nan)

    def network(state: Tensor, _time: Tensor) -> Tensor:
        assert (state[~mask] == 0).all()
        return torch.where(mask[..., None], state.sin(), math.nan)

    def noise(_step: int) -> Tensor:
        return torch.where(mask[..., None], torch.ones(2, 3, 4), math.nan)

    sampled = sample(kind, network, start, mask, schedule=_schedule(kind, 6), noise=noise, record=True)
    for tensor in (sampled.states, sampled.means, sampled.stds):
        assert tensor is not None
        assert (tensor[:, ~mask] == 0).all()
        assert torch.isfinite(tensor).all()
    assert torch.isfinite(sampled.log_probs).all()


def test_methods_and_schedules_that_do_not_fit_are_refused() -> None:
    assert set(STEPS) == set(SamplerKind)
    state, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    for kind in SamplerKind:
        wrong: AnySchedule = TRAINING if kind in FLOWS else FlowSchedule(num_steps=5)
        with pytest.raises(ValueError, match=f"sampler {kind} needs a"):
            sample(kind, _zero, state, mask, schedule=wrong, noise=_no_noise)
        with pytest.raises(ValueError, match="a level must be from 0 to 4, got 5"):
            sample(kind, _zero, state, mask, schedule=_schedule(kind, 5), noise=_no_noise, start=5)
    with pytest.raises(ValueError, match="eta must be"):
        SamplerSettings(eta=-0.1)
    with pytest.raises(ValueError, match="eta must be"):
        replace(SamplerSettings(), eta=math.nan)
    learned = SamplerSettings(variance=Variance.LEARNED_RANGE)
    options = {"schedule": respace(TRAINING, 5), "noise": lambda _: state, "settings": learned}
    with pytest.raises(ValueError, match="learned_range needs a denoiser with variance channels"):
        sample(SamplerKind.DDPM, _zero, state, mask, **options)
