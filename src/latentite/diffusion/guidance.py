"""Classifier-free guidance: u + s (c - u), or u + sum_i s_i (c_i - u) with one scale per condition.

s = 0 is the unconditional model and s = 1 the conditional one, each exactly and at one network pass;
otherwise all passes go through the network as one batch. Wraps a network into the `denoise` of `samplers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from latentite.diffusion.steps import Denoise


class Condition(Protocol):
    """Conditioning of a network, one row per crystal; `nn.conditions.Conditioning` is one."""

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One part after the other."""


Told = TypeVar("Told", bound=Condition)
Network = Callable[[Tensor, Tensor, Tensor, Told | None], Tensor]
"""(tokens, time, mask, condition or None) -> raw output; `nn.denoiser.Denoiser` is one."""


def unconditional(
    network: Callable[[Tensor, Tensor, Tensor, None], Tensor], mask: Bool[Tensor, "crystal token"]
) -> Denoise:
    """The denoiser of a network without conditions."""
    return lambda tokens, time: network(tokens, time, mask, None)


def guided(
    network: Network[Told],
    mask: Bool[Tensor, "crystal token"],
    *,
    absent: Told,
    conditions: Sequence[Told],
    scales: Sequence[float],
    guide_variance: bool = True,
) -> Denoise:
    """A guided denoiser.

    Args:
        network: the conditional network.
        mask: True where a token is real.
        absent: says that no condition is given.
        conditions: one that says everything that is given, under one scale, or one for each scale.
        scales: s of each.
        guide_variance: guide the variance channels as the prediction (Chemeleon2 guides its whole output).
            When off they take each scale clipped to [0, 1], hence never leave what the network itself says.

    Raises:
        ValueError: when there are not as many scales as conditions, or a scale is not finite.
    """
    if len(conditions) != len(scales) or not conditions:
        raise ValueError(f"guidance must have one scale per condition ({len(conditions)}), got {len(scales)}")
    if not all(math.isfinite(scale) for scale in scales):
        raise ValueError(f"guidance must be finite, got {', '.join(str(scale) for scale in scales)}")
    active = [(condition, scale) for condition, scale in zip(conditions, scales, strict=True) if scale != 0.0]
    if not active:
        return lambda tokens, time: network(tokens, time, mask, absent)
    if len(active) == 1 and active[0][1] == 1.0:
        return lambda tokens, time: network(tokens, time, mask, active[0][0])
    weights = [scale for _, scale in active]
    together = type(absent).concatenate([absent, *(condition for condition, _ in active)])
    passes = len(active) + 1
    masks = mask.repeat(passes, 1)

    def denoise(tokens: Tensor, time: Tensor) -> Tensor:
        output = network(tokens.repeat(passes, 1, 1), time.repeat(passes), masks, together)
        base, *others = output.chunk(passes)
        result = combine(base, others, weights)
        if guide_variance or output.shape[-1] == tokens.shape[-1]:
            return result
        inside = [min(max(weight, 0.0), 1.0) for weight in weights]
        variance = combine(base, others, inside)[..., tokens.shape[-1] :]
        return torch.cat([result[..., : tokens.shape[-1]], variance], dim=-1)

    return denoise


def combine(base: Tensor, others: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """u + sum_i s_i (c_i - u)."""
    result = base
    for other, scale in zip(others, scales, strict=True):
        result = result + scale * (other - base)
    return result
