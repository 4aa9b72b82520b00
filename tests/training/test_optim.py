"""Optimizers, schedules and the moving average against formulas written out again here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from latentite.training.ema import EMAConfig, WeightAverage
from latentite.training.optim import (
    OptimizerConfig,
    SchedulerConfig,
    build_optimizer,
    build_scheduler,
    configure,
    lr_factor,
)


def rates(config: SchedulerConfig, total: int, steps: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2).parameters(), OptimizerConfig(lr=2.0))
    scheduler = build_scheduler(optimizer, config, total)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return seen


def test_cosine_falls_from_the_peak_to_the_floor():
    found = rates(SchedulerConfig(name="cosine", min_lr_ratio=0.1), 10, 11)
    expected = [2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2) for t in range(11)]
    assert found == pytest.approx(expected)


def test_warmup_rises_linearly_and_is_never_zero():
    found = rates(SchedulerConfig(name="warmup_linear", warmup_steps=3), 7, 8)
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, 1.5, 1.0, 0.5, 0.0])


def test_constant_is_constant():
    assert rates(SchedulerConfig(), 5, 5) == [2.0] * 5


@given(
    name=st.sampled_from(["constant", "cosine", "warmup_linear"]),
    warmup=st.integers(0, 20),
    total=st.integers(1, 50),
    floor=st.floats(0, 1),
    step=st.integers(0, 200),
)
def test_a_rate_is_never_negative_nor_above_the_peak(name, warmup, total, floor, step):
    config = SchedulerConfig(name=name, warmup_steps=warmup, min_lr_ratio=floor)
    assert 0 <= lr_factor(config, total)(step) <= 1


def test_the_configured_length_goes_before_the_trainer_s():
    found = rates(SchedulerConfig(name="cosine", total_steps=4), 1000, 5)
    assert found[-1] == pytest.approx(0)


def test_a_falling_schedule_without_an_end_is_refused():
    with pytest.raises(ValueError, match="needs the length of the run, got inf steps"):
        configure(
            nn.Linear(1, 1).parameters(),
            OptimizerConfig(),
            SchedulerConfig(name="cosine"),
            total_steps=float("inf"),
        )


def test_plateau_looks_only_when_there_is_a_new_validation():
    found = configure(
        nn.Linear(1, 1).parameters(),
        OptimizerConfig(),
        SchedulerConfig(name="plateau"),
        total_steps=10,
        validate_every=50,
    )
    assert found["lr_scheduler"]["frequency"] == 50
    assert found["lr_scheduler"]["monitor"] == "val/loss"


def test_weight_decay_spares_vectors():
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = build_optimizer(network.parameters(), OptimizerConfig(weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {decay[id(p)] for p in network.parameters() if p.ndim == 2} == {0.1}
    assert {decay[id(p)] for p in network.parameters() if p.ndim == 1} == {0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be a positive number, got 0.0"),
        ({"name": "lion"}, "name must be one of adamw, adam, sgd, got 'lion'"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas must lie in"),
    ],
)
def test_impossible_optimizers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change)


@given(decay=st.floats(0.01, 0.999), steps=st.integers(1, 20), warmup=st.booleans())
def test_the_average_is_the_recursion_of_its_definition(decay, steps, warmup):
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    average = WeightAverage(network, EMAConfig(decay=decay, warmup=warmup))
    expected = network.weight.detach().clone()
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.add_(torch.randn_like(network.weight))
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step)) if warmup else decay
        expected = kept * expected + (1 - kept) * network.weight.detach()
    torch.testing.assert_close(average.state_dict()["weight"], expected)


def test_swapping_twice_changes_nothing_and_keeps_the_storages():
    network = nn.Linear(3, 2)
    average = WeightAverage(network, EMAConfig())
    with torch.no_grad():
        network.weight.add_(1.0)
    live, pointer = network.weight.detach().clone(), network.weight.data_ptr()
    held = average.state_dict()["weight"].clone()
    average.swap()
    assert network.weight.equal(held)
    assert average.state_dict()["weight"].equal(held)
    assert average.trained()["weight"].equal(live)
    average.swap()
    assert network.weight.equal(live)
    assert network.weight.data_ptr() == pointer


def test_an_average_of_another_network_is_refused():
    average = WeightAverage(nn.Linear(1, 1), EMAConfig())
    with pytest.raises(ValueError, match=r"they differ in \['bias'\]"):
        average.load_state_dict({"weight": torch.zeros(1, 1)})


def test_a_fused_step_can_follow_clipping_in_mixed_precision():
    """Lightning refuses to clip for optimizers that say that they undo the scaling of gradients themselves."""
    layer = nn.Linear(3, 3)
    optimizer = build_optimizer(layer.parameters(), OptimizerConfig())
    assert optimizer.defaults["fused"]
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.clip_gradients(optimizer, clip_val=1.0)
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert float(norm) == pytest.approx(1.0, rel=1e-5)


def fallen_plateau(**changes: Any) -> tuple[dict, dict, Any, Any]:
    """States of a plateau that fell once to a half, and a new pair of optimizer and schedule with other settings."""

    def pair(optimizer: dict, scheduler: dict) -> tuple[Any, Any]:
        parameters = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]
        built = build_optimizer(parameters, OptimizerConfig(lr=0.1, **optimizer))
        schedule = build_scheduler(built, SchedulerConfig(name="plateau", patience=0, **scheduler), 10)
        return built, schedule

    old, plateau = pair({}, {"factor": 0.5})
    for value in (1.0, 2.0):
        plateau.step(value)
    assert [group["lr"] for group in old.param_groups] == [0.05]
    weight_decay = {"weight_decay": changes.pop("weight_decay")} if "weight_decay" in changes else {}
    new, schedule = pair(weight_decay, {"factor": 0.5} | changes)
    new.load_state_dict(old.state_dict())
    schedule.load_state_dict(plateau.state_dict())
    return old.state_dict(), plateau.state_dict(), new, schedule


def test_a_resumed_plateau_keeps_its_fall_and_takes_a_new_factor():
    _, before, new, schedule = fallen_plateau()
    assert schedule.state_dict() == before
    assert [group["lr"] for group in new.param_groups] == [0.05]
    _, _, new, schedule = fallen_plateau(factor=0.1)
    schedule.step(3.0)
    assert [group["lr"] for group in new.param_groups] == [pytest.approx(0.005)]


def test_a_resumed_plateau_keeps_its_fall_when_weight_decay_is_switched_on():
    _, _, new, _ = fallen_plateau(weight_decay=0.1)
    assert [group["lr"] for group in new.param_groups] == [pytest.approx(0.05)] * 2
    assert [group["weight_decay"] for group in new.param_groups] == [0.1, 0.0]


def test_a_resumed_plateau_of_another_metric_has_seen_nothing():
    _, before, _, schedule = fallen_plateau(monitor="val/other")
    assert before["best"] == 1.0
    assert schedule.best == math.inf


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(2, 2), (3,), (1, 4), ()]), min_size=1, max_size=6),
    slow=st.sets(st.integers(0, 5)),
    before=st.sampled_from([0.0, 0.1]),
    after=st.sampled_from([0.0, 0.2]),
)
def test_each_parameter_keeps_its_own_moments_whatever_the_groups(shapes, slow, before, after):
    parameters = [nn.Parameter(torch.full(shape, float(i + 1))) for i, shape in enumerate(shapes)]
    chosen = [p for i, p in enumerate(parameters) if i in slow]
    slow_ones: dict[str, Any] = {"slow": chosen, "slow_ratio": 0.5}
    old = build_optimizer(parameters, OptimizerConfig(weight_decay=before), **slow_ones)
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, i + 1.0)
    old.step()
    new = build_optimizer(parameters, OptimizerConfig(lr=0.3, weight_decay=after), **slow_ones)
    new.load_state_dict(old.state_dict())
    for parameter in parameters:
        assert new.state[parameter]["exp_avg"].equal(old.state[parameter]["exp_avg"])
    assert {group["lr"] for group in new.param_groups} <= {0.3, 0.15}
    assert {group["weight_decay"] for group in new.param_groups} <= {after, 0.0}


def test_a_state_of_other_parameters_is_refused():
    def optimizer(count: int) -> Any:
        return build_optimizer([nn.Parameter(torch.ones(2)) for _ in range(count)], OptimizerConfig())

    with pytest.raises(ValueError, match=r"must be of 2 parameters, got groups of \[3\]"):
        optimizer(2).load_state_dict(optimizer(3).state_dict())
