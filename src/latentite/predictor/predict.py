"""Properties of any structures from a trained predictor: `latentite predict`.

`predict_dataset` does the work in memory; `write_predictions` writes one row per structure of the source, those that
could not be predicted included, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from latentite.base.files import write_csv
from latentite.base.machine import BATCH_SIZE
from latentite.crystal import FIDELITY, CrystalBatch
from latentite.data.dataset import CrystalDataset
from latentite.data.readers.records import Rejection
from latentite.formulas import reduced_formulas
from latentite.metrics.rates import Rate
from latentite.nn.predictor import PropertyPredictor
from latentite.nn.predictor_config import Predictions

Advance = Callable[[int], None]
"""Told how many more crystals are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionTable:
    """One row per structure of a source."""

    ids: tuple[str, ...]
    formulas: tuple[str, ...]
    columns: dict[str, list[float | str]]
    """By name, in the order of `ids`: each target, `<target>_std` of one whose uncertainty is known,
    `<target>_probability` of a class. NaN or empty in rows that failed."""
    failures: dict[int, str]
    """Reason for which a row has no prediction, by position."""
    rejections: tuple[Rejection, ...]
    """Rows of the source that are no usable crystal."""

    @property
    def rate(self) -> Rate:
        """Predicted of all rows of the source."""
        total = len(self.ids) + len(self.rejections)
        return Rate(numerator=len(self.ids) - len(self.failures), denominator=total)


@torch.no_grad()
def predict_dataset(
    network: PropertyPredictor,
    dataset: CrystalDataset,
    *,
    rejections: Sequence[Rejection] = (),
    fidelity: str | None = None,
    batch_size: int = BATCH_SIZE,
    device: torch.device | str = "cpu",
    advance: Advance = lambda count: None,
) -> PredictionTable:
    """Predict every crystal of a data set.

    Args:
        network: in evaluation mode.
        dataset: crystals in canonical form, as the network was trained on.
        rejections: rows of the source that did not become crystals.
        fidelity: which level of theory; None for the reference.
        batch_size: crystals at once; cells of similar size go together, the result does not depend on it.
        device: where.
        advance: told of progress.

    Raises:
        ValueError: for a fidelity that the predictor does not have.
    """
    crystals = at_fidelity(network, dataset.crystals.with_properties({}), fidelity)
    failures = _without_baseline(network, crystals)
    usable = torch.tensor([i for i in range(len(crystals)) if i not in failures], dtype=torch.long)
    order = usable[crystals.num_atoms[usable].argsort(stable=True)]
    columns: dict[str, list[float | str]] = {}
    network = network.to(device).eval()
    for index in order.split(batch_size):
        predictions = network.predictions(network.prepare(crystals.select(index).to(device)))
        _fill(columns, predictions, network, index, len(crystals))
        advance(len(index))
    for position in order.tolist():
        if not all(_is_number(columns[name][position]) for name in network.config.targets):
            failures[position] = "the prediction is not a finite number"
    return PredictionTable(
        ids=dataset.ids,
        formulas=tuple(reduced_formulas(crystals)) if len(crystals) else (),
        columns=columns,
        failures=failures,
        rejections=tuple(rejections),
    )


def at_fidelity(network: PropertyPredictor, crystals: CrystalBatch, fidelity: str | None) -> CrystalBatch:
    """Crystals that ask for a fidelity; None for the reference.

    Raises:
        ValueError: for one that the predictor does not have.
    """
    if fidelity is None:
        return crystals
    known = network.config.fidelities
    if fidelity not in known:
        raise ValueError(
            f"fidelity must be one of {', '.join(known) or 'none: it has one only'}, got {fidelity!r}"
        )
    codes = torch.full((len(crystals),), float(known.index(fidelity)), device=crystals.device)
    return crystals.with_properties({**crystals.properties, FIDELITY: codes})


def write_predictions(table: PredictionTable, path: str | Path) -> None:
    """Write the table as CSV; structures that could not be predicted have a reason in the column `failure`."""
    names = list(table.columns)
    rows: list[list[object]] = []
    for position, (identifier, formula) in enumerate(zip(table.ids, table.formulas, strict=True)):
        failure = table.failures.get(position, "")
        cells = [None if failure else table.columns[name][position] for name in names]
        rows.append([identifier, formula, *cells, failure])
    rows += ([item.id, "", *[None] * len(names), item.reason] for item in table.rejections)
    write_csv(path, ["id", "formula", *names, "failure"], rows)


def _fill(
    columns: dict[str, list[float | str]],
    predictions: Predictions,
    network: PropertyPredictor,
    index: Int[Tensor, " selected"],
    total: int,
) -> None:
    """Put the predictions of a batch where its crystals stand."""
    new: dict[str, list[float | str]] = {}
    for name in network.config.targets:
        values = predictions.values[name].cpu()
        if name in network.config.classes:
            new[name] = [network.config.classes[name][int(code)] for code in values]
            new[f"{name}_probability"] = predictions.probabilities[name].amax(dim=-1).tolist()
            continue
        new[name] = values.tolist()
        if name in predictions.spreads:
            new[f"{name}_std"] = predictions.spreads[name].tolist()
    for name, cells in new.items():
        column = columns.setdefault(name, [math.nan] * total)
        for position, cell in zip(index.tolist(), cells, strict=True):
            column[position] = cell


def _without_baseline(network: PropertyPredictor, crystals: CrystalBatch) -> dict[int, str]:
    """Crystals with an element that the predictor has no baseline for, and the sentence that names it."""
    if network.baselines is None:
        return {}
    fidelity = network.fidelity_of(crystals)
    baselines = network.baselines
    values = baselines.unchecked(
        crystals.atomic_numbers, crystals.crystal_index, crystals.num_atoms, fidelity
    )
    failures = {}
    for position in values.isnan().any(dim=1).nonzero().flatten():
        one = position.view(1)
        failures[int(position)] = "; ".join(baselines.missing(crystals.select(one), fidelity[one]))
    return failures


def _is_number(value: float | str) -> bool:
    return isinstance(value, str) or math.isfinite(value)
