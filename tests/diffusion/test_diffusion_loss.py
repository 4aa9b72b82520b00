"""Losses per crystal: independent oracles, masks, and which numbers get a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentite.diffusion.loss import (
    FlowTimes,
    ddpm_loss,
    draw_flow_times,
    draw_steps,
    flow_loss,
)
from latentite.diffusion.schedule import Schedule, Target, ddpm_schedule
from latentite.diffusion.steps import Variance

NUM_CRYSTALS, NUM_TOKENS, NUM_CHANNELS = 6, 5, 3
SIZES = [2, 5, 1, 4, 3, 5]
STEPS = [0, 1, 17, 500, 998, 999]


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_CRYSTALS, NUM_TOKENS, NUM_CHANNELS)
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    mask = torch.arange(NUM_TOKENS) < torch.tensor(SIZES)[:, None]
    return latents, noise, mask, torch.tensor(STEPS)


def _network(state: Tensor, time: Tensor) -> Tensor:
    """Any function of one token alone: prediction and variance channels."""
    prediction = torch.tanh(state + time[:, None, None] / 700.0)
    return torch.cat([prediction, torch.sin(3.0 * state)], dim=-1)


def _prediction_only(state: Tensor, time: Tensor) -> Tensor:
    return _network(state, time)[..., :NUM_CHANNELS]


def _oracle(schedule: Schedule, target: Target) -> tuple[list[float], list[float]]:
    """Both terms crystal by crystal with torch.distributions, in float64 and without a mask."""
    latents, noise, _, _ = (tensor.double() for tensor in _inputs())
    alphas_cumprod = schedule.alphas_cumprod
    squares, bits = [], []
    for row, (size, step) in enumerate(zip(SIZES, STEPS, strict=True)):
        x0, eps = latents[row : row + 1, :size], noise[row : row + 1, :size]
        now = float(alphas_cumprod[step])
        before = float(alphas_cumprod[step - 1]) if step else 1.0
        beta = 1.0 - now / before
        alpha, sigma = math.sqrt(now), math.sqrt(1.0 - now)
        state = alpha * x0 + sigma * eps
        output, channels = _network(state, torch.tensor([float(step)])).chunk(2, dim=-1)
        wanted = {Target.EPSILON: eps, Target.X0: x0, Target.V: alpha * eps - sigma * x0}[target]
        guess = {
            Target.EPSILON: (state - sigma * output) / alpha,
            Target.X0: output,
            Target.V: alpha * state - sigma * output,
        }[target]
        squares.append(float(((output - wanted) ** 2).mean()))
        second = 1.0 - float(alphas_cumprod[1]) / float(alphas_cumprod[0])
        first_variance = second * (1.0 - float(alphas_cumprod[0])) / (1.0 - float(alphas_cumprod[1]))
        small = beta * (1.0 - before) / (1.0 - now) if step else first_variance
        share = (channels + 1.0) / 2.0
        std = torch.exp(0.5 * (share * math.log(beta) + (1.0 - share) * math.log(small)))

        def mean_of(clean: Tensor, now: float = now, before: float = before, state: Tensor = state) -> Tensor:
            beta = 1.0 - now / before
            return (math.sqrt(before) * beta * clean + math.sqrt(1.0 - beta) * (1.0 - before) * state) / (
                1.0 - now
            )

        model = Normal(mean_of(guess), std)
        if step == 0:
            nats = -model.log_prob(x0)
        else:
            nats = kl_divergence(Normal(mean_of(x0), torch.tensor(math.sqrt(small)).double()), model)
        bits.append(float(nats.mean()) / math.log(2.0))
    return squares, bits


@pytest.mark.parametrize("target", list(Target))
def test_terms_equal_an_independent_computation(target: Target) -> None:
    latents, noise, mask, steps = _inputs()
    schedule = ddpm_schedule()
    loss = ddpm_loss(_network, latents, mask, schedule=schedule, steps=steps, noise=noise, target=target)
    squares, bits = _oracle(schedule, target)
    torch.testing.assert_close(loss.terms["mse"], torch.tensor(squares), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.terms["vlb"], torch.tensor(bits), rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(loss.total, loss.terms["mse"] + loss.terms["vlb"])
    assert loss.time.tolist() == STEPS


def test_a_shorter_schedule_weighs_its_vlb_less() -> None:
    latents, noise, mask, _ = _inputs()
    short = ddpm_schedule(num_steps=500)
    steps = torch.full((NUM_CRYSTALS,), 400)
    long_like = ddpm_loss(_network, latents, mask, schedule=short, steps=steps, noise=noise)
    level = short.at(400)
    state = level.alpha * latents + level.sigma * noise
    prediction, channels = _network(state, torch.full((NUM_CRYSTALS,), 400.0)).chunk(2, dim=-1)
    share = 0.5 * (channels + 1.0)
    std = torch.exp(0.5 * (share * level.log_beta + (1 - share) * level.posterior_log_variance))
    error = level.mean_x0 * level.sigma / level.alpha * (prediction - noise)
    divergence = kl_divergence(
        Normal(torch.zeros(()), torch.tensor(level.posterior_variance**0.5)), Normal(error, std)
    )
    expected = (divergence * mask[..., None]).sum((1, 2)) / (mask.sum(1) * NUM_CHANNELS) / math.log(2.0)
    torch.testing.assert_close(long_like.terms["vlb"], 0.5 * expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_masked_tokens_contribute_exactly_nothing_whatever_they_hold(kind: str) -> None:
    latents, noise, mask, steps = _inputs()

    def loss_of(latents: Tensor, noise: Tensor, mask: Tensor, rows: slice = slice(None)) -> Tensor:
        if kind == "flow":
            times = (steps / 1000.0)[rows]
            return flow_loss(_prediction_only, latents, mask, flow_times=times, noise=noise).total
        schedule = ddpm_schedule()
        return ddpm_loss(_network, latents, mask, schedule=schedule, steps=steps[rows], noise=noise).total

    expected = loss_of(latents, noise, mask)
    for junk in (0.0, 1e30, math.nan, math.inf):
        dirty = [torch.where(mask[..., None], tensor, junk) for tensor in (latents, noise)]
        assert torch.equal(loss_of(*dirty, mask), expected)
    padding = torch.zeros(NUM_CRYSTALS, 3, NUM_CHANNELS)
    wider = [torch.cat([tensor, padding], dim=1) for tensor in (latents, noise)]
    wider_mask = torch.cat([mask, torch.zeros(NUM_CRYSTALS, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(loss_of(*wider, wider_mask), expected)
    for row in range(NUM_CRYSTALS):
        one = slice(row, row + 1)
        alone = loss_of(latents[one], noise[one], mask[one], one)
        torch.testing.assert_close(alone, expected[one])


def test_the_vlb_trains_the_variance_and_the_mse_the_prediction() -> None:
    latents, noise, mask, steps = _inputs()
    weights = torch.nn.Parameter(torch.zeros(2 * NUM_CHANNELS))

    def network(state: Tensor, time: Tensor) -> Tensor:
        return _network(state, time) + weights

    loss = ddpm_loss(network, latents, mask, schedule=ddpm_schedule(), steps=steps, noise=noise)
    for name, trained in {"mse": slice(0, 3), "vlb": slice(3, 6)}.items():
        (gradient,) = torch.autograd.grad(loss.terms[name].sum(), weights, retain_graph=True)
        others = slice(3, 6) if name == "mse" else slice(0, 3)
        assert (gradient[trained] != 0.0).all()
        assert (gradient[others] == 0.0).all()
        assert torch.isfinite(gradient).all()


def test_a_perfect_network_has_no_loss() -> None:
    latents, noise, mask, steps = _inputs()
    for target in Target:
        level = ddpm_schedule().at(steps)
        answers = {
            Target.EPSILON: noise,
            Target.X0: latents,
            Target.V: level.alpha * noise - level.sigma * latents,
        }
        loss = ddpm_loss(
            lambda _state, _time, answer=answers[target]: answer,
            latents,
            mask,
            schedule=ddpm_schedule(),
            steps=steps,
            noise=noise,
            target=target,
            variance=Variance.FIXED_SMALL,
        )
        assert list(loss.terms) == ["mse"]
        assert loss.total.max() < 1e-12
    velocity = noise - latents
    flow = flow_loss(lambda _state, _time: velocity, latents, mask, flow_times=steps / 999, noise=noise)
    assert flow.total.max() == 0.0
    torch.testing.assert_close(flow.time, steps / 999 * 1000.0)


def test_flow_goes_from_data_at_0_to_noise_at_1() -> None:
    latents, noise, mask, _ = _inputs()
    seen: list[Tensor] = []

    def network(state: Tensor, _time: Tensor) -> Tensor:
        seen.append(state)
        return torch.zeros_like(state)

    for flow_time, wanted in ((0.0, latents), (1.0, noise), (0.25, 0.75 * latents + 0.25 * noise)):
        flow_loss(network, latents, mask, flow_times=torch.full((NUM_CRYSTALS,), flow_time), noise=noise)
        torch.testing.assert_close(seen[-1], wanted * mask[..., None])


def test_outputs_that_do_not_fit_the_settings_are_refused() -> None:
    latents, noise, mask, steps = _inputs()
    options = {"schedule": ddpm_schedule(), "steps": steps, "noise": noise}
    with pytest.raises(ValueError, match="variance=learned_range must fit the denoiser"):
        ddpm_loss(_prediction_only, latents, mask, **options)
    with pytest.raises(ValueError, match="variance=fixed_small must fit the denoiser"):
        ddpm_loss(_network, latents, mask, variance=Variance.FIXED_SMALL, **options)
    with pytest.raises(ValueError, match="output must have 3 channels, or 6"):
        ddpm_loss(lambda state, _time: state[..., :1], latents, mask, **options)
    with pytest.raises(ValueError, match="must have 3 output channels, got 6"):
        flow_loss(_network, latents, mask, flow_times=steps / 1000.0, noise=noise)


def test_levels_and_times_are_drawn_from_their_distributions() -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    steps = draw_steps(20000, ddpm_schedule(), generator())
    assert steps.min() >= 0
    assert steps.max() == 999
    assert abs(float(steps.float().mean()) - 499.5) < 8.0
    uniform = draw_flow_times(20000, generator(), kind=FlowTimes.UNIFORM)
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert abs(float(uniform.std()) - 12**-0.5) < 0.01
    times = draw_flow_times(20000, generator(), kind=FlowTimes.LOGIT_NORMAL, mean=-0.5, std=0.7)
    assert abs(float(times.logit().mean()) + 0.5) < 0.02
    assert abs(float(times.logit().std()) - 0.7) < 0.02
    assert torch.equal(draw_steps(9, ddpm_schedule(), generator()), steps[:9])
