"""Gaussian policies per crystal: log-ratio, divergence and entropy of one step's distributions.

All count the entries that are real and have noise, and sum over a crystal's tokens and channels or take their mean.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.diffusion.steps import Moments


def log_ratio(
    next_states: Float[Tensor, "row token channel"],
    new: Moments,
    old: Moments,
    mask: Bool[Tensor, "row token"],
    *,
    per_entry: bool,
) -> Float[Tensor, " row"]:
    """log p_new(next state) - log p_old(next state).

    Taken entry by entry before anything is summed: the two sums are large and nearly equal, and their difference
    would be rounding. Equal moments give exactly 0.
    """
    counts, new_std, old_std = _counted(new, old, mask)
    z_new = (next_states - new.mean) / new_std
    z_old = (next_states - old.mean) / old_std
    difference = 0.5 * (z_old - z_new) * (z_old + z_new) - (new_std / old_std).log()
    return _reduced(difference, counts, per_entry=per_entry)


def kl_divergence(
    new: Moments, reference: Moments, mask: Bool[Tensor, "row token"], *, per_entry: bool
) -> Float[Tensor, " row"]:
    """KL(new || reference) in closed form."""
    counts, new_std, reference_std = _counted(new, reference, mask)
    ratio = new_std / reference_std
    distance = (new.mean - reference.mean) / reference_std
    return _reduced(0.5 * (ratio**2 + distance**2 - 1.0) - ratio.log(), counts, per_entry=per_entry)


def k3(log_ratio_to_new: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Estimator of KL(new || reference) from actions of the new policy: r - 1 - log r, r = p_reference / p_new.

    Schulman 2020, "Approximating KL divergence"; never negative, unbiased.

    Args:
        log_ratio_to_new: log p_reference(action) - log p_new(action).
    """
    return log_ratio_to_new.expm1() - log_ratio_to_new


def entropy(moments: Moments, mask: Bool[Tensor, "row token"], *, per_entry: bool) -> Float[Tensor, " row"]:
    """Differential entropy, nats."""
    counts, std, _ = _counted(moments, moments, mask)
    return _reduced(0.5 * math.log(2.0 * math.pi * math.e) + std.log(), counts, per_entry=per_entry)


def _counted(one: Moments, other: Moments, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries that are real and have noise, and both stds, 1 elsewhere, so that nothing is divided by 0."""
    one_std, other_std = (
        torch.as_tensor(m.std, dtype=m.mean.dtype, device=m.mean.device).expand(m.mean.shape)
        for m in (one, other)
    )
    counts = mask[..., None] & (one_std > 0.0) & (other_std > 0.0)
    return counts, torch.where(counts, one_std, 1.0), torch.where(counts, other_std, 1.0)


def _reduced(values: Tensor, counts: Tensor, *, per_entry: bool) -> Tensor:
    total = torch.where(counts, values, 0.0).sum(dim=(1, 2))
    return total / counts.sum(dim=(1, 2)).clamp(min=1) if per_entry else total
