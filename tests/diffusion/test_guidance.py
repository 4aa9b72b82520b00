"""One guidance convention: u + s (c - u)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentite.diffusion.guidance import guided, unconditional
from latentite.nn.conditions import Conditioning


class CountingNetwork:
    """Nonlinear in all of its inputs; counts how often it is called and with how many rows."""

    def __init__(self, *, has_variance: bool) -> None:
        self.rows: list[int] = []
        self._factor = 2 if has_variance else 1

    def __call__(self, tokens: Tensor, time: Tensor, mask: Tensor, condition: Conditioning | None) -> Tensor:
        self.rows.append(len(tokens))
        shift = 0.0 if condition is None else condition.vector[:, None, :].sin() * (1.0 + tokens**2)
        output = torch.tanh(tokens + shift + time[:, None, None] / 1000.0) * mask[..., None]
        return output.repeat(1, 1, self._factor) * torch.linspace(0.5, 1.5, output.shape[-1] * self._factor)


def asked(vector: Tensor) -> Conditioning:
    """Conditions that say this, of a model that has none by name."""
    return Conditioning(
        vector=vector,
        per_condition=torch.zeros(len(vector), 0, vector.shape[1]),
        present=torch.zeros(len(vector), 0, dtype=torch.bool),
    )


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = {name: asked(torch.randn(3, 4, generator=generator)) for name in ("absent", "first", "second")}
    tokens = torch.randn(3, 5, 4, generator=generator)
    mask = torch.arange(5) < torch.tensor([2, 5, 4])[:, None]
    return {"tokens": tokens, "mask": mask, "time": torch.tensor([3.0, 500.0, 999.0]), **normal}


@pytest.mark.parametrize("has_variance", [False, True])
@pytest.mark.parametrize("guide_variance", [False, True])
@pytest.mark.parametrize(("scale", "alone"), [(0.0, "absent"), (1.0, "first")])
def test_scales_0_and_1_are_the_two_models_exactly_at_one_pass(
    inputs: dict[str, Tensor], scale: float, alone: str, has_variance: bool, guide_variance: bool
) -> None:
    network = CountingNetwork(has_variance=has_variance)
    tokens, mask, time = inputs["tokens"], inputs["mask"], inputs["time"]
    expected = network(tokens, time, mask, inputs[alone])
    network.rows.clear()
    denoise = guided(
        network,
        mask,
        absent=inputs["absent"],
        conditions=[inputs["first"]],
        scales=[scale],
        guide_variance=guide_variance,
    )
    assert torch.equal(denoise(tokens, time), expected)
    assert network.rows == [3]


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_other_scales_extrapolate_in_one_batched_pass(inputs: dict[str, Tensor], scale: float) -> None:
    network = CountingNetwork(has_variance=True)
    tokens, mask, time = inputs["tokens"], inputs["mask"], inputs["time"]
    without = network(tokens, time, mask, inputs["absent"])
    given = network(tokens, time, mask, inputs["first"])
    network.rows.clear()
    denoise = guided(network, mask, absent=inputs["absent"], conditions=[inputs["first"]], scales=[scale])
    torch.testing.assert_close(denoise(tokens, time), without + scale * (given - without))
    assert network.rows == [6]


def test_unguided_variance_stays_between_the_two_models(inputs: dict[str, Tensor]) -> None:
    network = CountingNetwork(has_variance=True)
    tokens, mask, time = inputs["tokens"], inputs["mask"], inputs["time"]
    without = network(tokens, time, mask, inputs["absent"])
    given = network(tokens, time, mask, inputs["first"])
    options = {"absent": inputs["absent"], "conditions": [inputs["first"]], "guide_variance": False}
    output = guided(network, mask, scales=[3.0], **options)(tokens, time)
    torch.testing.assert_close(output[..., :4], (without + 3.0 * (given - without))[..., :4])
    torch.testing.assert_close(output[..., 4:], given[..., 4:])
    half = guided(network, mask, scales=[0.5], **options)(tokens, time)
    torch.testing.assert_close(half[..., 4:], (0.5 * (without + given))[..., 4:])


def test_each_condition_has_its_own_scale_and_those_of_0_cost_nothing(inputs: dict[str, Tensor]) -> None:
    network = CountingNetwork(has_variance=False)
    tokens, mask, time = inputs["tokens"], inputs["mask"], inputs["time"]
    without, first, second = (
        network(tokens, time, mask, inputs[name]) for name in ("absent", "first", "second")
    )
    conditions = [inputs["first"], inputs["second"]]
    expected = {
        (2.0, 0.5): (without + 2.0 * (first - without) + 0.5 * (second - without), 9),
        (2.0, 0.0): (without + 2.0 * (first - without), 6),
        (0.0, 1.0): (second, 3),
        (0.0, 0.0): (without, 3),
    }
    for scales, (answer, rows) in expected.items():
        network.rows.clear()
        denoise = guided(network, mask, absent=inputs["absent"], conditions=conditions, scales=scales)
        torch.testing.assert_close(denoise(tokens, time), answer)
        assert network.rows == [rows]


def test_a_network_without_conditions(inputs: dict[str, Tensor]) -> None:
    network = CountingNetwork(has_variance=False)
    output = unconditional(network, inputs["mask"])(inputs["tokens"], inputs["time"])
    assert torch.equal(output, network(inputs["tokens"], inputs["time"], inputs["mask"], None))


@pytest.mark.parametrize("scales", [[], [1.0, 2.0], [float("nan")], [float("inf")]])
def test_unfitting_scales_are_refused(inputs: dict[str, Tensor], scales: list[float]) -> None:
    network = CountingNetwork(has_variance=False)
    with pytest.raises(ValueError, match="guidance must"):
        guided(network, inputs["mask"], absent=inputs["absent"], conditions=[inputs["first"]], scales=scales)
