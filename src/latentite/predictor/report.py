"""What a predictor's run leaves beside its checkpoints: errors, tables and figures of validation and test.

Its files:

    predictor_report.json          every metric of both splits, and the checkpoint that was measured
    predictions_{val,test}.csv     label, prediction and uncertainty of every crystal
    parity_{val,test}.png          a panel per target (and fidelity)
    calibration_{val,test}.png     observed against nominal coverage, where the uncertainty is known
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from latentite.base.files import write_json
from latentite.base.tables import write_csv
from latentite.data.dataset import CrystalDataset
from latentite.draw.charts import draw_calibration, draw_parity
from latentite.nn.predictor import PropertyPredictor
from latentite.objectives.predictor import PredictorLossConfig
from latentite.predictor.cache import encode_inputs
from latentite.predictor.rows import SplitRows, coverages, measure

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
        found = measure(network, rows, options)
        metrics |= {f"{split}/{name}": value for name, value in found.items()}
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
    found = rows.predictions(network)
    columns: dict[str, list[float]] = {}
    for position, name in enumerate(config.targets):
        columns[name] = rows.labels[:, position].tolist()
        columns[f"{name}_predicted"] = found.values[name].tolist()
        if name in found.spreads:
            columns[f"{name}_std"] = found.spreads[name].tolist()
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
