"""Segment operations against plain loops, and against torch_scatter where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentite.nn import segment

HAS_SCATTER = importlib.util.find_spec("torch_scatter") is not None
OPERATIONS = [segment.segment_sum, segment.segment_mean, segment.segment_softmax]


@pytest.fixture(autouse=True)
def _native() -> Iterator[None]:
    segment.use_torch_scatter(False)
    yield
    segment.use_torch_scatter(False)


def loop(operation: Callable[..., Tensor], values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The same by a Python loop over segments with masks: an independent oracle."""
    if operation is segment.segment_softmax:
        result = torch.empty_like(values)
        for number in index.unique().tolist():
            result[index == number] = values[index == number].softmax(dim=0)
        return result
    rows = []
    for number in range(num_segments):
        members = values[index == number]
        if operation is segment.segment_sum:
            rows.append(members.sum(dim=0))
        elif len(members) == 0:
            rows.append(torch.zeros(values.shape[1:], dtype=values.dtype))
        else:
            rows.append(members.mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("operation", OPERATIONS)
@given(
    seed=st.integers(0, 2**31),
    num_atoms=st.integers(1, 40),
    num_segments=st.integers(1, 9),
    rest=st.sampled_from([(), (1,), (5,), (3, 2)]),
)
def test_operation_equals_a_loop_over_segments(
    operation: Callable[..., Tensor], seed: int, num_atoms: int, num_segments: int, rest: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(num_segments, (num_atoms,), generator=generator)
    values = 3.0 * torch.randn(num_atoms, *rest, generator=generator, dtype=torch.float64) + 50.0
    actual = operation(values, index, num_segments)
    torch.testing.assert_close(actual, loop(operation, values, index, num_segments), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradient_equals_finite_differences(operation: Callable[..., Tensor]) -> None:
    index = torch.tensor([0, 0, 2, 2, 2, 3])
    values = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda v: operation(v, index, 5), (values.requires_grad_(),))


def test_softmax_stays_finite_for_large_scores() -> None:
    weights = segment.segment_softmax(torch.tensor([1e4, -1e4, 3e4]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.0, 1.0]))


def test_count_includes_empty_segments() -> None:
    assert segment.segment_count(torch.tensor([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.skipif(
    importlib.util.find_spec("torch_scatter") is None, reason="torch_scatter is not installed"
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_torch_scatter_gives_the_same_values_and_gradients(operation: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(30, (400,), generator=generator)
    values = torch.randn(400, 16, generator=generator)
    weight = torch.randn(400, 16, generator=generator)
    outcomes = []
    for enabled in (False, True):
        segment.use_torch_scatter(enabled)
        leaf = values.clone().requires_grad_()
        result = operation(leaf, index, 32)
        (result * weight[: len(result)]).sum().backward()
        outcomes.append((result.detach(), leaf.grad))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_scatter") is not None, reason="torch_scatter is installed"
)
def test_asking_for_a_missing_torch_scatter_names_the_extra() -> None:
    with pytest.raises(ImportError, match="scatter` extra"):
        segment.use_torch_scatter(True)
