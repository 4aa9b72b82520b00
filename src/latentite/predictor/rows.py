"""A whole split as the predictor sees it: inputs encoded once, raw outputs beside labels, their metrics and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentite.base.files import write_csv, write_json
from latentite.crystal import FIDELITY, CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.sampler import WeightedDraw
from latentite.draw.charts import draw_calibration, draw_parity
from latentite.metrics.errors import classification_metrics, regression_metrics
from latentite.nn.predictor import PredictorInput, PropertyPredictor
from latentite.nn.predictor_config import (
    Pooling,
    Predictions,
    interval_miss,
    nominal_coverages,
    normal_spread,
    read_outputs,
    split_outputs,
)
from latentite.nn.predictor_config import central as central_outputs
from latentite.objectives.predictor import PredictorLossConfig, labels_of, predictor_terms
from latentite.objectives.terms import num_processes
from latentite.training.datamodule import CrystalDataModule
from latentite.training.latent_cache import ENCODE_CHUNK, CachedBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedInputs:
    """Inputs of the heads for all crystals of a split."""

    crystals: CrystalBatch
    """On the CPU, where batches are planned; everything else lies on the device."""
    inputs: PredictorInput
    labels: Float[Tensor, "crystal target"]
    is_per_atom: bool
    """True where the features have a row per atom."""

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms of each crystal, on the CPU."""
        return self.crystals.num_atoms

    def select(self, index: Int[Tensor, " selected"]) -> CachedBatch:
        """The batch of the crystals at these positions."""
        atoms = self.crystals.atoms_of(index) if self.is_per_atom else index[:0]
        return CachedBatch(crystals=index, atoms=atoms, num_atoms=self.num_atoms[index])

    def batch(self, batch: CachedBatch) -> tuple[PredictorInput, Float[Tensor, "crystal target"]]:
        """Inputs and labels of a batch."""
        rows, own = batch.crystals, self.inputs
        inputs = PredictorInput(
            features=own.features[batch.atoms if self.is_per_atom else rows],
            num_atoms=own.num_atoms[rows],
            fidelity=own.fidelity[rows],
            baseline=own.baseline[rows],
        )
        return inputs, self.labels[rows]


@torch.no_grad()
def encode_inputs(network: PropertyPredictor, crystals: CrystalBatch) -> CachedInputs:
    """Encode a split on the device of the network.

    Crystals are encoded in order of their size, which pads little; the result is in their own order.
    """
    device = network.mean.device
    order = crystals.num_atoms.argsort(stable=True)
    parts = [network.prepare(crystals.select(index).to(device)) for index in order.split(ENCODE_CHUNK)]
    sorted_rows = CachedInputs(
        crystals=crystals.select(order),
        inputs=concatenate_inputs(parts),
        labels=labels_of(network.config, crystals.select(order).properties).to(device),
        is_per_atom=network.config.pooling is Pooling.ATTENTION,
    )
    inputs, labels = sorted_rows.batch(sorted_rows.select(order.argsort()).to(device))
    return CachedInputs(crystals=crystals, inputs=inputs, labels=labels, is_per_atom=sorted_rows.is_per_atom)


def concatenate_inputs(parts: list[PredictorInput]) -> PredictorInput:
    """One input of several, in order."""
    return PredictorInput(
        features=torch.cat([part.features for part in parts]),
        num_atoms=torch.cat([part.num_atoms for part in parts]),
        fidelity=torch.cat([part.fidelity for part in parts]),
        baseline=torch.cat([part.baseline for part in parts]),
    )


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
        errors = judge(labels[:, column], values[name])
        metrics |= {f"{name}_{key}": value for key, value in errors.items()}
        for position, label in enumerate(config.fidelities):
            chosen = fidelity == position
            errors = judge(labels[chosen, column], values[name][chosen])
            metrics |= {f"{label}/{name}_{key}": value for key, value in errors.items()}
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
    observed_coverages = {}
    for column, name, part in split_outputs(config, rows.outputs):
        known: Bool[Tensor, " crystal"] = ~rows.labels[:, column].isnan()
        if name in config.classes or not bool(known.any()):
            continue
        scale = float(network.spread_scale[column]) if config.ensemble > 1 else 1.0
        miss = interval_miss(config, part[:, known], normalised[known, column], scale)
        if miss is not None:
            observed = (miss <= 0).double().mean(dim=1)
            observed_coverages[name] = list(zip(nominal_coverages(config), observed.tolist(), strict=True))
    return observed_coverages


REPORTED = ("val", "test")


def report_run(
    network: PropertyPredictor,
    splits: dict[str, CrystalDataset],
    folder: Path,
    options: PredictorLossConfig,
    *,
    checkpoint: str,
) -> tuple[dict[str, float], list[Path]]:
    """Measure a trained predictor on validation and test; write everything above.

    Args:
        network: on its device.
        splits: of the data, by name.
        folder: of the run.
        options: of its loss.
        checkpoint: name of the file that the weights are of.

    Returns:
        Metrics such as `test/band_gap_mae`, and the figures.
    """
    metrics: dict[str, float] = {}
    figures: list[Path] = []
    for split in REPORTED:
        if not len(splits.get(split, ())):
            continue
        dataset = splits[split]
        rows = predict_split(network, dataset)
        measured = measure(network, rows, options)
        metrics |= {f"{split}/{name}": value for name, value in measured.items()}
        write_table(network, rows, dataset.ids, folder / f"predictions_{split}.csv")
        figures += draw_split(network, rows, folder, split)
    write_json(folder / "predictor_report.json", {"checkpoint": checkpoint, "metrics": metrics})
    return metrics, figures


@torch.no_grad()
def predict_split(network: PropertyPredictor, dataset: CrystalDataset) -> SplitRows:
    """Raw outputs for all crystals of a split, beside their labels."""
    cached = encode_inputs(network.eval(), dataset.crystals)
    return SplitRows.of(network.outputs(cached.inputs), cached.labels, cached.inputs)


def draw_split(network: PropertyPredictor, rows: SplitRows, folder: Path, split: str) -> list[Path]:
    """Write the figures of a split; those that would be empty are left out."""
    figures = []
    panels = {name: (labels, values) for name, labels, values in _pairs(network, rows) if len(labels)}
    if panels:
        units = {name: network.config.units.get(name.rpartition(": ")[2], "") for name in panels}
        figures.append(
            draw_parity(panels, folder / f"parity_{split}.png", units=units, heading=f"{split} split")
        )
    if curves := coverages(network, rows):
        figures.append(
            draw_calibration(curves, folder / f"calibration_{split}.png", heading=f"{split} split")
        )
    return figures


def write_table(network: PropertyPredictor, rows: SplitRows, ids: tuple[str, ...], path: Path) -> None:
    """Write one row per crystal (and fidelity): its labels, predictions and uncertainties."""
    config = network.config
    predictions = rows.predictions(network)
    columns: dict[str, list[float]] = {}
    for position, name in enumerate(config.targets):
        columns[name] = rows.labels[:, position].tolist()
        columns[f"{name}_predicted"] = predictions.values[name].tolist()
        if name in predictions.spreads:
            columns[f"{name}_std"] = predictions.spreads[name].tolist()
    fidelities = [config.fidelities[code] for code in rows.fidelity.tolist()] if config.fidelities else None
    first: dict[str, Sequence[str]] = {"id": ids} | ({"fidelity": fidelities} if fidelities else {})
    write_csv(path, [*first, *columns], zip(*first.values(), *columns.values(), strict=True))


def _pairs(network: PropertyPredictor, rows: SplitRows) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, labels and predictions of every panel: numeric targets, at each fidelity."""
    config = network.config
    values = rows.predictions(network).values
    fidelity = rows.fidelity.cpu().numpy()
    for column, name in enumerate(config.targets):
        if name in config.classes:
            continue
        labels, predicted = rows.labels[:, column].cpu().numpy(), values[name].cpu().numpy()
        known = ~np.isnan(labels)
        if not config.fidelities:
            yield name, labels[known], predicted[known]
        for position, label in enumerate(config.fidelities):
            chosen = known & (fidelity == position)
            yield f"{label}: {name}", labels[chosen], predicted[chosen]


class FidelityDraws:
    """Counts the rows of the batches that this process trains on."""

    def __init__(self, names: Sequence[str], epoch_rows: Sequence[int], device: torch.device | str) -> None:
        """Start at zero.

        Args:
            names: of the fidelities.
            epoch_rows: of each, what an epoch should have.
            device: where the batches are: counting must not wait for it.
        """
        self._names, self._epoch_rows = tuple(names), tuple(epoch_rows)
        self._counts = torch.zeros(len(self._names), dtype=torch.long, device=device)

    @classmethod
    def of(cls, data: CrystalDataModule, device: torch.device | str) -> FidelityDraws:
        """For the fidelities of the data; without any it counts nothing."""
        names, weights = list(data.config.fidelities), data.config.fidelity_weights
        if not names:
            return cls([], [], device)
        group = data.splits["train"].crystals.properties[FIDELITY].long()
        if weights is None:
            return cls(names, torch.bincount(group, minlength=len(names)).tolist(), device)
        return cls(names, WeightedDraw(group=group, weights=weights).counts(), device)

    def add(self, fidelity: Int[Tensor, " crystal"]) -> None:
        """Count a batch: the position of each row's fidelity."""
        if self._names:
            self._counts.index_add_(0, fidelity, torch.ones_like(fidelity))

    def describe(self) -> str:
        """Rows that all processes drew so far, and the same number as asked for; empty without fidelities."""
        if not self._names:
            return ""
        counts = self._counts.clone()
        if num_processes() > 1:
            dist.all_reduce(counts)
        drawn, length = counts.tolist(), sum(self._epoch_rows)
        parts = [
            f"{name} {count:,} ({sum(drawn) * wanted / length:,.0f})"
            for name, count, wanted in zip(self._names, drawn, self._epoch_rows, strict=True)
        ]
        return f"rows drawn (asked for): {', '.join(parts)}"
