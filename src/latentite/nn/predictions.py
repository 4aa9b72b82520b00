"""Outputs of a predictor as values and uncertainties in the unit of the labels, probabilities of classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.nn.predictor_config import HeadKind, PredictorConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """Of a batch, by target."""

    values: dict[str, Float[Tensor, " crystal"]]
    """In the unit of the labels; of a categorical target the code of its likeliest class."""
    spreads: dict[str, Float[Tensor, " crystal"]] = field(default_factory=dict)
    """One standard deviation, for numeric targets of a predictor that knows its uncertainty."""
    probabilities: dict[str, Float[Tensor, "crystal class"]] = field(default_factory=dict)
    """Of the classes of categorical targets."""


def split_outputs(
    config: PredictorConfig, outputs: Float[Tensor, "member crystal output"]
) -> Iterator[tuple[int, str, Float[Tensor, "member crystal part"]]]:
    """Position, name and outputs of each target."""
    widths = [config.num_outputs(name) for name in config.targets]
    parts = outputs.split(widths, dim=-1)
    yield from zip(range(len(widths)), config.targets, parts, strict=True)


def central(
    config: PredictorConfig, part: Float[Tensor, "member crystal part"]
) -> Float[Tensor, "member crystal"]:
    """The number that each member predicts, normalised: the output itself, or its median."""
    return part[..., config.quantiles.index(0.5) if config.head is HeadKind.QUANTILE else 0]


def normal_spread(
    config: PredictorConfig, part: Float[Tensor, "member crystal part"]
) -> Float[Tensor, " crystal"] | None:
    """One standard deviation in normalised units, before any stretching; None where nothing is known of it.

    Of quantiles, half the width of the interval nearest to one standard deviation; of point heads, the standard
    deviation over the ensemble.
    """
    if config.head is HeadKind.QUANTILE:
        one_sigma = NormalDist().cdf(-1.0)
        low = min(range(len(config.quantiles) // 2), key=lambda i: abs(config.quantiles[i] - one_sigma))
        levels = part.mean(dim=0).sort(dim=-1).values
        width = NormalDist().inv_cdf(config.quantiles[-1 - low])
        return (levels[:, -1 - low] - levels[:, low]) / (2.0 * width)
    return part[..., 0].std(dim=0, correction=1) if config.ensemble > 1 else None


def read_outputs(
    config: PredictorConfig,
    outputs: Float[Tensor, "member crystal output"],
    *,
    mean: Float[Tensor, "crystal target"],
    std: Float[Tensor, " target"],
    spread_scale: Float[Tensor, " target"] | None,
) -> Predictions:
    """Outputs in the unit of the labels.

    Args:
        config: of the predictor.
        outputs: of every member of the ensemble.
        mean: of the transformed labels, the baseline included.
        std: of the transformed labels.
        spread_scale: what the spread of each target is multiplied with.
    """
    values, spreads, probabilities = {}, {}, {}
    for column, name, part in split_outputs(config, outputs):
        if name in config.classes:
            chances = part.softmax(dim=-1).mean(dim=0)
            probabilities[name] = chances
            values[name] = chances.argmax(dim=-1).to(outputs.dtype)
            continue
        inverse = config.transform(name).inverse
        middle = central(config, part).mean(dim=0) * std[column] + mean[:, column]
        values[name] = inverse(middle)
        spread = normal_spread(config, part)
        if spread is not None:
            scale = 1.0 if spread_scale is None else spread_scale[column]
            half = spread * scale * std[column]
            spreads[name] = 0.5 * (inverse(middle + half) - inverse(middle - half))
    return Predictions(values=values, spreads=spreads, probabilities=probabilities)


def interval_miss(
    config: PredictorConfig,
    part: Float[Tensor, "member crystal part"],
    normalised: Float[Tensor, " crystal"],
    scale: Tensor | float,
) -> Float[Tensor, "nominal crystal"] | None:
    """Distance of each label from the central interval of each nominal coverage; 0 or less inside.

    Args:
        config: of the predictor.
        part: outputs of one target.
        normalised: its labels.
        scale: stretches the spread of an ensemble.
    """
    if config.head is HeadKind.QUANTILE:
        levels = part.mean(dim=0).sort(dim=-1).values
        half = len(config.quantiles) // 2
        pairs = [(levels[:, i], levels[:, -1 - i]) for i in range(half)]
        return torch.stack([torch.maximum(low - normalised, normalised - high) for low, high in pairs])
    spread = normal_spread(config, part)
    if spread is None:
        return None
    distance = (normalised - central(config, part).mean(dim=0)).abs()
    widths = [NormalDist().inv_cdf(0.5 + 0.5 * level) for level in nominal_coverages(config)]
    return torch.stack([distance - width * scale * spread for width in widths])


def nominal_coverages(config: PredictorConfig) -> list[float]:
    """Of the intervals of `interval_miss`."""
    if config.head is HeadKind.QUANTILE:
        return [1.0 - 2.0 * level for level in config.quantiles[: len(config.quantiles) // 2]]
    return [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
