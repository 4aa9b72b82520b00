"""The predictor's objective: a masked mean per target and fidelity, weighted over those that are present.

A missing label (NaN) is replaced before anything is computed with it, so that nothing of it reaches a value or a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.nn.predictor_config import HeadKind, PredictorConfig, central, split_outputs
from latentite.objectives.terms import LossTerms, Term


class PredictorLoss(StrEnum):
    """Loss of a numeric target's point prediction, in normalised units."""

    MSE = "mse"
    MAE = "mae"
    HUBER = "huber"
    """Squares below one standard deviation, linear above."""

    def __call__(self, error: Tensor) -> Tensor:
        if self is PredictorLoss.MSE:
            return error.square()
        if self is PredictorLoss.MAE:
            return error.abs()
        return F.huber_loss(error, torch.zeros_like(error), reduction="none")


@dataclass(kw_only=True, slots=True)
class PredictorLossConfig:
    """Kind and weights of the errors."""

    kind: PredictorLoss = PredictorLoss.HUBER
    """Of point heads; quantile heads have the pinball loss, classes the cross-entropy."""
    target_weights: dict[str, float] = field(default_factory=dict)
    """By target; 1 where nothing is said."""
    fidelity_weights: dict[str, float] = field(default_factory=dict)
    """By fidelity, likewise."""

    def __post_init__(self) -> None:
        for key in ("target_weights", "fidelity_weights"):
            for name, weight in getattr(self, key).items():
                if not (math.isfinite(weight) and weight >= 0.0):
                    raise ValueError(f"{key}.{name} must be 0 or more, got {weight}")


def labels_of(config: PredictorConfig, properties: Mapping[str, Tensor]) -> Float[Tensor, "crystal target"]:
    """Labels in the order of the targets, NaN where they are missing.

    Raises:
        ValueError: when the crystals have no such property.
    """
    if missing := [name for name in config.targets if name not in properties]:
        raise ValueError(
            f"target {missing[0]} must be a label of the crystals, which have: {', '.join(properties) or 'none'}"
        )
    return torch.stack([properties[name] for name in config.targets], dim=1)


def predictor_terms(
    network: PropertyPredictor,
    inputs: PredictorInput,
    outputs: Float[Tensor, "member crystal output"],
    labels: Float[Tensor, "crystal target"],
    options: PredictorLossConfig,
    *,
    present: Bool[Tensor, "crystal target"] | None = None,
) -> LossTerms:
    """One term per target and fidelity; its total is divided by the weights of those with a label in the batch.

    Args:
        network: whose statistics normalise the labels.
        inputs: of the heads.
        outputs: of the heads.
        labels: in the unit of the data.
        options: weights and kind.
        present: which labels count; None for those that are not NaN.
    """
    config = network.config
    present = ~labels.isnan() if present is None else present
    known = torch.where(present, labels, 1.0)  # 1: within the range of every transform, and a class
    normalised = network.normalised(known, inputs.baseline)
    terms = {}
    for column, name, part in split_outputs(config, outputs.float()):
        wanted = known[:, column] if name in config.classes else normalised[:, column]
        errors = target_loss(config, name, part, wanted, options.kind).mean(dim=0)
        weight = options.target_weights.get(name, 1.0)
        for position, fidelity in enumerate(config.fidelities or [""]):
            mask = present[:, column]
            if fidelity:
                mask = mask & (inputs.fidelity == position)
            terms[f"{fidelity}/{name}" if fidelity else name] = Term(
                sum=torch.where(mask, errors, 0.0).sum(),
                count=mask.sum().to(errors.dtype),
                weight=weight * options.fidelity_weights.get(fidelity, 1.0),
            )
    return LossTerms(terms=terms, over_present=True)


def target_loss(
    config: PredictorConfig,
    name: str,
    part: Float[Tensor, "member crystal part"],
    wanted: Float[Tensor, " crystal"],
    kind: PredictorLoss,
) -> Float[Tensor, "member crystal"]:
    """Loss of one target, for every member of the ensemble and crystal.

    Args:
        config: of the predictor.
        name: of the target.
        part: its outputs.
        wanted: normalised labels, or codes of classes.
        kind: for point heads.
    """
    if name in config.classes:
        codes = wanted.long().expand(part.shape[:2])
        return F.cross_entropy(part.movedim(-1, 1), codes, reduction="none")
    if config.head is HeadKind.QUANTILE:
        return pinball(part, wanted, part.new_tensor(config.quantiles))
    return kind(central(config, part) - wanted)


def pinball(
    quantiles: Float[Tensor, "member crystal level"],
    wanted: Float[Tensor, " crystal"],
    levels: Float[Tensor, " level"],
) -> Float[Tensor, "member crystal"]:
    """Mean over levels q of max(q e, (q - 1) e) with e = label - quantile (Koenker & Bassett 1978), doubled.

    Doubled, so that the median's share is the absolute error.
    """
    error = wanted[:, None] - quantiles
    return 2.0 * torch.maximum(levels * error, (levels - 1.0) * error).mean(dim=-1)
