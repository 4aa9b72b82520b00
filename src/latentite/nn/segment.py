"""Segment operations: many atoms to one crystal, in one place.

The native torch functions are the reference: they need nothing to be installed, run on every device and have fast
backward passes. `torch_scatter` is an optional accelerator behind an explicit switch (`use_torch_scatter(True)` or
the environment variable `LATENTITE_SCATTER=1`); a parity test holds the two together, and `benchmarks/segment.py`
says which is faster.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

_enabled: bool | None = None
"""None until someone decides: then the environment does, at the first call."""


def use_torch_scatter(enabled: bool) -> None:
    """Choose the implementation for this process.

    Raises:
        ImportError: when `torch_scatter` is asked for but cannot be imported.
    """
    global _enabled
    if enabled:
        _import_torch_scatter()
    _enabled = enabled


def segment_sum(
    values: Float[Tensor, " atom *rest"], index: Int[Tensor, " atom"], num_segments: int
) -> Float[Tensor, " segment *rest"]:
    """Sum of the values of each segment; an empty segment gives 0.

    Args:
        values: what is summed, first axis over atoms.
        index: for each atom its segment, in [0, num_segments); in any order.
        num_segments: length of the result's first axis.
    """
    if _wants_torch_scatter():
        return _import_torch_scatter().scatter_add(values, index, dim=0, dim_size=num_segments)
    # index_add, not scatter_reduce: equally fast forward, and its backward is one gather (FACTS.md).
    return values.new_zeros((num_segments, *values.shape[1:])).index_add(0, index, values)


def segment_count(index: Int[Tensor, " atom"], num_segments: int) -> Int[Tensor, " segment"]:
    """Number of atoms in each segment."""
    return torch.zeros(num_segments, dtype=torch.long, device=index.device).index_add(
        0, index, torch.ones_like(index)
    )


def segment_mean(
    values: Float[Tensor, " atom *rest"], index: Int[Tensor, " atom"], num_segments: int
) -> Float[Tensor, " segment *rest"]:
    """Mean of the values of each segment; an empty segment gives 0."""
    total = segment_sum(values, index, num_segments)
    count = segment_count(index, num_segments).clamp(min=1).to(values.dtype)
    return total / count.reshape(-1, *[1] * (values.dim() - 1))


def segment_softmax(
    scores: Float[Tensor, " atom *rest"], index: Int[Tensor, " atom"], num_segments: int
) -> Float[Tensor, " atom *rest"]:
    """Softmax over the members of each segment: positive weights that add up to 1 within a segment."""
    # The largest score is a constant shift that cancels, so no gradient needs to pass through it.
    largest = segment_max(scores.detach(), index, num_segments)
    exponential = (scores - largest[index]).exp()
    return exponential / segment_sum(exponential, index, num_segments)[index]


def segment_max(
    values: Float[Tensor, " atom *rest"], index: Int[Tensor, " atom"], num_segments: int
) -> Float[Tensor, " segment *rest"]:
    """Largest value of each segment; an empty segment gives minus infinity (and is never gathered)."""
    result = values.new_full((num_segments, *values.shape[1:]), float("-inf"))
    expanded = index.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return result.scatter_reduce(0, expanded, values, reduce="amax", include_self=True)


def _wants_torch_scatter() -> bool:
    if torch.compiler.is_compiling():  # a compiled graph fuses the native operations better
        return False
    if _enabled is None:
        use_torch_scatter(os.environ.get("LATENTITE_SCATTER", "0") == "1")
    return bool(_enabled)


def _import_torch_scatter() -> ModuleType:
    try:
        import torch_scatter
    except ImportError as error:
        raise ImportError(
            "torch_scatter was asked for (use_torch_scatter or LATENTITE_SCATTER=1) but cannot be imported; "
            "install the `scatter` extra or unset LATENTITE_SCATTER"
        ) from error
    return torch_scatter
