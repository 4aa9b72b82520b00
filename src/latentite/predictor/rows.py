"""A whole split as the predictor sees it: raw outputs beside labels, and what they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.metrics.regression import classification_metrics, regression_metrics
from latentite.nn.predictions import (
    Predictions,
    interval_miss,
    nominal_coverages,
    normal_spread,
    read_outputs,
    split_outputs,
)
from latentite.nn.predictions import central as central_outputs
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.objectives.predictor import PredictorLossConfig, predictor_terms
from latentite.training.reduce import num_processes

ONE_SIGMA = 0.6827
"""Coverage of a normal distribution within one standard deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRows:
    """Raw outputs of the heads beside what they should say."""

    outputs: Float[Tensor, "member crystal output"]
    labels: Float[Tensor, "crystal target"]
    """In the unit of the data; NaN where missing."""
    fidelity: Int[Tensor, " crystal"]
    baseline: Float[Tensor, "crystal target"]

    @staticmethod
    def of(outputs: Tensor, labels: Tensor, inputs: PredictorInput) -> SplitRows:
        """Of one batch."""
        return SplitRows(
            outputs=outputs.float(), labels=labels, fidelity=inputs.fidelity, baseline=inputs.baseline.float()
        )

    @staticmethod
    def concatenate(parts: Sequence[SplitRows]) -> SplitRows:
        """Batches as one."""
        return SplitRows(
            outputs=torch.cat([part.outputs for part in parts], dim=1),
            labels=torch.cat([part.labels for part in parts]),
            fidelity=torch.cat([part.fidelity for part in parts]),
            baseline=torch.cat([part.baseline for part in parts]),
        )

    def to(self, device: torch.device | str) -> SplitRows:
        """The same on another device."""
        return SplitRows(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})

    def predictions(self, network: PropertyPredictor) -> Predictions:
        """In the unit of the labels."""
        return read_outputs(
            network.config,
            self.outputs,
            mean=network.mean + self.baseline,
            std=network.std,
            spread_scale=network.spread_scale if network.config.ensemble > 1 else None,
        )

    def normalised(self, network: PropertyPredictor) -> Float[Tensor, "crystal target"]:
        """Labels as the outputs are."""
        return network.normalised(self.labels, self.baseline)


def gather_rows(rows: SplitRows) -> SplitRows:
    """The rows of all processes, on the CPU."""
    if num_processes() == 1:
        return rows
    parts: list[Any] = [None] * num_processes()
    dist.all_gather_object(parts, rows.to("cpu"))
    return SplitRows.concatenate(parts)


@torch.no_grad()
def measure(network: PropertyPredictor, rows: SplitRows, options: PredictorLossConfig) -> dict[str, float]:
    """`loss`, and by target `<target>_mae`, `_rmse` and `_r2`, or `_accuracy` of classes.

    With several fidelities those names are of all labels together, and `<fidelity>/<target>_mae` of each.
    """
    config = network.config
    inputs = PredictorInput(
        features=rows.outputs[0, :, :0],
        num_atoms=rows.fidelity,
        fidelity=rows.fidelity,
        baseline=rows.baseline,
    )
    terms = predictor_terms(network, inputs, rows.outputs, rows.labels, options)
    metrics = {"loss": float(terms.total())}
    values = {name: array.cpu().numpy() for name, array in rows.predictions(network).values.items()}
    labels, fidelity = rows.labels.cpu().numpy(), rows.fidelity.cpu().numpy()
    for column, name in enumerate(config.targets):
        judge = classification_metrics if name in config.classes else regression_metrics
        found = judge(labels[:, column], values[name])
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
        for position, label in enumerate(config.fidelities):
            chosen = fidelity == position
            found = judge(labels[chosen, column], values[name][chosen])
            metrics |= {f"{label}/{name}_{key}": value for key, value in found.items()}
    return metrics


@torch.no_grad()
def fit_spread_scale(network: PropertyPredictor, rows: SplitRows) -> None:
    """Stretch the spread of an ensemble so that one standard deviation covers 68 % of these labels."""
    config = network.config
    if config.ensemble == 1:
        return
    normalised = rows.normalised(network)
    for column, name, part in split_outputs(config, rows.outputs):
        known = ~rows.labels[:, column].isnan()
        spread = None if name in config.classes else normal_spread(config, part)
        if spread is None or not bool(known.any()):
            continue
        error = (normalised[:, column] - central_outputs(config, part).mean(dim=0)).abs()[known]
        ratio = (error / spread[known].clamp(min=1e-12)).sort().values
        network.spread_scale[column] = ratio[min(len(ratio) - 1, int(ONE_SIGMA * len(ratio)))]


@torch.no_grad()
def coverages(network: PropertyPredictor, rows: SplitRows) -> dict[str, list[tuple[float, float]]]:
    """By numeric target the pairs (nominal, observed) coverage of central intervals; none without uncertainty."""
    config = network.config
    normalised = rows.normalised(network)
    found = {}
    for column, name, part in split_outputs(config, rows.outputs):
        known: Bool[Tensor, " crystal"] = ~rows.labels[:, column].isnan()
        if name in config.classes or not bool(known.any()):
            continue
        scale = float(network.spread_scale[column]) if config.ensemble > 1 else 1.0
        miss = interval_miss(config, part[:, known], normalised[known, column], scale)
        if miss is not None:
            observed = (miss <= 0).double().mean(dim=1)
            found[name] = list(zip(nominal_coverages(config), observed.tolist(), strict=True))
    return found
