"""DDPM schedules, their respacing and the flow's path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from latentite.diffusion.schedule import (
    FlowSchedule,
    ScheduleKind,
    Spacing,
    Target,
    ddpm_schedule,
    respace,
    target_of,
    to_epsilon,
    to_x0,
)

COUNTS = [1, 2, 3, 10, 100, 999, 1000, 4000]


def test_linear_schedule_equals_a_plain_loop_of_ho_et_al() -> None:
    schedule = ddpm_schedule()
    product = 1.0
    for step in range(1000):
        beta = 1e-4 + (0.02 - 1e-4) * step / 999
        before, product = product, product * (1.0 - beta)
        level = schedule.at(step)
        assert level.alpha**2 == pytest.approx(product, rel=1e-12)
        assert level.posterior_variance == pytest.approx(beta * (1 - before) / (1 - product), rel=1e-9)
        assert level.mean_x0 == pytest.approx(before**0.5 * beta / (1 - product), rel=1e-9)
        assert level.mean_xt == pytest.approx((1 - beta) ** 0.5 * (1 - before) / (1 - product), abs=1e-12)


@pytest.mark.parametrize("kind", list(ScheduleKind))
@pytest.mark.parametrize("num_steps", COUNTS)
def test_schedules_are_monotone_and_their_posteriors_bounded(kind: ScheduleKind, num_steps: int) -> None:
    schedule = ddpm_schedule(kind, num_steps)
    level = schedule.at(torch.arange(num_steps))
    assert torch.isfinite(schedule.table).all()
    assert (schedule.alphas_cumprod.diff() < 0).all()
    assert (schedule.alphas_cumprod > 0).all()
    assert (schedule.alphas_cumprod < 1).all()
    assert (level.posterior_variance <= level.beta * (1 + 1e-6)).all()
    assert (level.posterior_log_variance <= level.log_beta + 1e-6).all()
    assert schedule.at(0).posterior_variance == 0.0
    assert schedule.at(0).mean_x0 == pytest.approx(1.0)
    assert schedule.at(0).mean_xt == 0.0


@pytest.mark.parametrize("num_steps", [250, 1000, 4000])
def test_scaled_linear_schedules_end_at_the_same_noise(num_steps: int) -> None:
    last = float(ddpm_schedule(ScheduleKind.LINEAR, num_steps).alphas_cumprod[-1].log())
    assert last == pytest.approx(float(ddpm_schedule().alphas_cumprod[-1].log()), rel=0.03)


def test_cosine_schedule_follows_its_curve() -> None:
    schedule = ddpm_schedule(ScheduleKind.COSINE, 1000)
    times = torch.arange(1, 990, dtype=torch.float64) / 1000
    curve = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
    start = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod[:989], curve / start, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("spacing", [Spacing.EVEN, Spacing.LOG_SNR])
@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_every_number_of_steps_can_be_taken(kind: ScheduleKind, spacing: Spacing) -> None:
    """Regression: 937 of the 999 DDIM step counts of Chemeleon2 raise."""
    schedule = ddpm_schedule(kind)
    for num_steps in range(1, 1001):
        short = respace(schedule, num_steps, spacing)
        assert short.num_steps == num_steps
        assert short.timesteps[-1] == 999, "sampling starts where the noise is"
        assert num_steps == 1 or short.timesteps[0] == 0
        assert (short.timesteps.diff() > 0).all()
        assert torch.isfinite(short.table).all()


@given(total=st.integers(1, 2000), share=st.floats(0.0, 1.0))
def test_even_spacing_is_even(total: int, share: float) -> None:
    num_steps = max(1, round(share * total))
    gaps = respace(ddpm_schedule(num_steps=total), num_steps).timesteps.diff()
    assert num_steps < 3 or gaps.max() - gaps.min() <= 1


def test_all_steps_give_the_schedule_back() -> None:
    schedule = ddpm_schedule()
    for spacing in Spacing:
        same = respace(schedule, 1000, spacing)
        torch.testing.assert_close(same.table, schedule.table, rtol=1e-9, atol=1e-12)


def test_log_snr_spacing_is_finer_near_the_data_than_even_spacing() -> None:
    schedule = ddpm_schedule()
    even, finer = (respace(schedule, 20, spacing).timesteps for spacing in (Spacing.EVEN, Spacing.LOG_SNR))
    assert finer[5] < even[5] / 4


@pytest.mark.parametrize("num_steps", [0, 1001, -3])
def test_impossible_numbers_of_steps_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be from 1 to the schedule's 1000"):
        respace(ddpm_schedule(), num_steps)


def test_strides_exist_for_62_of_999_counts_only() -> None:
    possible = {-(-1000 // stride) for stride in range(1, 1001)} - {1000}
    assert len(possible) == 999 - 937
    schedule = ddpm_schedule()
    for num_steps in range(1, 1000):
        if num_steps in possible:
            gaps = respace(schedule, num_steps, Spacing.STRIDE).timesteps.diff()
            assert len(set(gaps.tolist())) <= 1
        else:
            with pytest.raises(ValueError, match="spacing=even, which takes any count"):
                respace(schedule, num_steps, Spacing.STRIDE)


@given(step=st.integers(0, 999), seed=st.integers(0, 2**16))
def test_predictions_convert_into_each_other(step: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    level = ddpm_schedule().at(step)
    state = level.alpha * x0 + level.sigma * noise
    for target in Target:
        prediction = target_of(x0, noise, level, target)
        torch.testing.assert_close(to_x0(prediction, state, level, target), x0)
        torch.testing.assert_close(to_epsilon(prediction, state, level, target), noise)


def test_levels_as_numbers_and_as_tensors_agree() -> None:
    schedule = respace(ddpm_schedule(), 50)
    steps = torch.tensor([0, 1, 17, 49])
    many = schedule.at(steps)
    for row, step in enumerate(steps.tolist()):
        one = schedule.at(step)
        for name in ("time", "alpha", "sigma_next", "log_beta", "posterior_log_variance", "is_noisy"):
            assert getattr(many, name).shape == (4, 1, 1)
            assert float(getattr(many, name)[row]) == pytest.approx(getattr(one, name), rel=1e-6)


def test_flow_levels_meet_and_end_at_the_data() -> None:
    schedule = FlowSchedule(num_steps=7)
    assert schedule.at(6).flow_time == 1.0
    assert schedule.at(0).flow_time_next == 0.0
    assert all(schedule.at(k).flow_time == schedule.at(k + 1).flow_time_next for k in range(6))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        FlowSchedule(num_steps=0)


@pytest.mark.parametrize(
    ("name", "num_steps", "spacing"),
    [
        ("1000", 1000, Spacing.EVEN),
        ("ddim10", 10, Spacing.STRIDE),
        ("ddim50", 50, Spacing.STRIDE),
        ("ddpm10", 10, Spacing.EVEN),
    ],
)
def test_constants_are_those_of_the_public_system(
    interop: Path, name: str, num_steps: int, spacing: Spacing
) -> None:
    reference = load_file(interop / "ref_diff.safetensors")
    schedule = respace(ddpm_schedule(), num_steps, spacing)
    steps = range(num_steps)
    ours = {
        "timestep_map": schedule.timesteps,
        "alphas_cumprod": schedule.alphas_cumprod,
        "betas": [schedule.at(k).beta for k in steps],
        "posterior_variance": [schedule.at(k).posterior_variance for k in steps],
        "posterior_log_variance_clipped": [schedule.at(k).posterior_log_variance for k in steps],
        "posterior_mean_coef1": [schedule.at(k).mean_x0 for k in steps],
        "posterior_mean_coef2": [schedule.at(k).mean_xt for k in steps],
    }
    for key, values in ours.items():
        expected = reference[f"diff.{name}.{key}"].double()
        torch.testing.assert_close(torch.as_tensor(values).double(), expected, rtol=1e-6, atol=1e-9)
