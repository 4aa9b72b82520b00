"""Choices at given uniform numbers: temperature, top-p and guidance of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """Settings of a draw."""

    temperature: float = 1.0
    """Of groups, letters, elements and cells."""
    temperature_coords: float = 1.0
    """Of coordinates."""
    top_p: float = 1.0
    """Of groups, letters, elements and coordinates: the likeliest choices that hold this share."""
    max_elements: int | None = None
    """Largest number of different elements; None for that of the training data."""
    guidance: float = 1.0
    """s of u + s (c - u) for the logits of groups, letters, elements and components of the cell's mixture."""

    def __post_init__(self) -> None:
        for name in ("temperature", "temperature_coords"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a positive number such as 0.9, got {value}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.max_elements is not None and self.max_elements < 1:
            raise ValueError(f"max_elements must be at least 1, got {self.max_elements}")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be finite, got {self.guidance}")


def guided(logits: Sequence[Float[Tensor, "*row choice"]], scale: float) -> Float[Tensor, "*row choice"]:
    """u + s (c - u).

    Args:
        logits: c alone, or c and u.
        scale: s; not read for c alone.
    """
    if len(logits) == 1:
        return logits[0]
    with_condition, without = (one.log_softmax(-1) for one in logits)
    return without + scale * (with_condition - without)


def kept(
    logits: Float[Tensor, "row choice"], *, temperature: float = 1.0, top_p: float = 1.0
) -> Float[Tensor, "row choice"]:
    """Log-probabilities of choices at a temperature, float64, minus infinity where top-p leaves them out.

    Args:
        logits: minus infinity where there is no choice.
        temperature: divides the logits.
        top_p: of the probabilities after that, the largest that make up this share are kept.
    """
    scaled = logits.double() / temperature
    if top_p < 1.0:
        probability, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
        drop = probability.cumsum(-1) - probability >= top_p
        scaled = scaled.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))
    return scaled.log_softmax(-1)


def choose(
    logits: Float[Tensor, "row choice"],
    uniform: Float[Tensor, " row"],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Choices at the given quantiles, and their log-probabilities.

    Args:
        logits: as for `kept`, like the last two.
        uniform: in [0, 1), float64.
        temperature: of the choices.
        top_p: of the choices.

    Raises:
        ValueError: for a row without any choice.
    """
    if not (logits > float("-inf")).any(-1).all():
        raise ValueError(
            "every row must have a choice, got one whose logits are all minus infinity or no number"
        )
    log = kept(logits, temperature=temperature, top_p=top_p)
    cumulative = log.exp().cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform.double().unsqueeze(-1).contiguous(), right=True).squeeze(
        -1
    )
    # At the upper end rounding may point behind the last choice that there is.
    places = torch.arange(logits.shape[-1], device=logits.device)
    index = torch.minimum(index, (places * torch.isfinite(log)).amax(-1))
    return index, log.gather(-1, index.unsqueeze(-1)).squeeze(-1).float()
