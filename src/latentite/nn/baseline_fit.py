"""Element baselines fitted to the labels of a training split, fidelity by fidelity.

Ridge least squares of totals per formula unit on the numbers of atoms of each element, as self-atomic energies are
fitted for potentials; the rows with the largest residuals on either side are left out of a second fit. Every fidelity
but the reference is pulled towards the reference's values, as strongly as cross-validation finds best: few rows do
not say much about many elements, and what they seem to say the network would have to take back. An element that a
fidelity never saw has exactly those values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int

from latentite.base.files import replacing
from latentite.crystal import FIDELITY, CrystalBatch
from latentite.elements import NUM_ELEMENTS, SYMBOLS
from latentite.nn.baseline_ridge import RIDGE, TRIM, fit_trimmed
from latentite.nn.baselines import ElementBaselines, Extent

Array = np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineFit:
    """Result of the fit of one fidelity and target; residuals are label minus baseline, in the unit of the labels."""

    fidelity: str
    target: str
    num_rows: int
    """With this label."""
    num_trimmed: int
    """Of them, left out of the (second) fit."""
    fitted: tuple[int, ...]
    """Atomic numbers that occur in these rows."""
    inherited: tuple[int, ...]
    """Atomic numbers that only the reference fidelity has."""
    label_std: float
    """Of the labels, per atom."""
    residual_mean: float
    """Per atom, over all rows, the trimmed ones included."""
    residual_mae: float
    residual_rmse: float
    residual_percentiles: tuple[float, float]
    """The two between which rows were kept (`trim` and 1 - `trim`)."""


def fit_baselines(
    batch: CrystalBatch,
    *,
    targets: Sequence[str],
    extents: Sequence[Extent | str],
    fidelities: Sequence[str] = ("labels",),
    reference: str | None = None,
    ridge: float = RIDGE,
    pull: float | None = None,
    trim: float = TRIM,
    materials: Sequence[str] | None = None,
) -> tuple[ElementBaselines, list[BaselineFit]]:
    """Baselines of every fidelity and target, from training rows only: the caller gives no others.

    Args:
        batch: rows with the targets as properties (NaN: no label) and, with several fidelities, the property
            `fidelity`.
        targets: names of properties.
        extents: one for each target; those of `none` are not fitted.
        fidelities: in the order of the property `fidelity`.
        reference: towards whose values the others are pulled; None for the first.
        ridge: weight of a pull of the reference's values towards 0.
        pull: weight of the pull of the others towards the reference's values; None for the one of `PULLS` that
            generalised cross-validation prefers.
        trim: share of the rows left out on either side, by residual per atom. Rows without which an element
            would have no row at all stay.
        materials: name of each row's material. Where it has a label at the reference too, the difference of the two
            is fitted, which all that does not depend on the fidelity has left.

    Raises:
        ValueError: for unknown names, a share outside [0, 0.5), or a target without any label in the reference.
    """
    reference = fidelities[0] if reference is None else reference
    _check_request(batch, targets, fidelities, reference, ridge=ridge, trim=trim)
    baselines = ElementBaselines(fidelities=fidelities, targets=targets, extents=extents)
    counts, units, atoms = formula_units(batch)
    codes = batch.properties.get(FIDELITY)
    fits = []
    for column, (target, extent) in enumerate(zip(targets, baselines.extents, strict=True)):
        if extent is Extent.NONE:
            continue
        labels = batch.properties[target].double().cpu().numpy()
        rows = _LabelledRows(
            counts=counts,
            # PER_ATOM labels times the atoms of a formula unit, TOTAL ones by the number of formula units.
            totals=labels * atoms if extent is Extent.PER_ATOM else labels / units,
            code=np.zeros(len(batch)) if codes is None else codes.cpu().numpy(),
            reference=fidelities.index(reference),
        )
        if not rows.at(rows.reference).any():
            raise ValueError(f"{target} must have labels at the reference fidelity {reference}, got none")
        for position, weights, fit in _fit_fidelities(
            rows, len(fidelities), materials, ridge=ridge, pull=pull, trim=trim
        ):
            baselines.values[position, column] = torch.from_numpy(weights)
            fits.append(BaselineFit(fidelity=fidelities[position], target=target, **fit))
    return baselines, fits


def _check_request(
    batch: CrystalBatch,
    targets: Sequence[str],
    fidelities: Sequence[str],
    reference: str,
    *,
    ridge: float,
    trim: float,
) -> None:
    if reference not in fidelities:
        raise ValueError(f"reference must be one of {', '.join(fidelities)}, got {reference!r}")
    if not 0.0 <= trim < 0.5 or not ridge >= 0.0:
        raise ValueError(f"trim must be in [0, 0.5) and ridge 0 or more, got {trim} and {ridge}")
    if unknown := [name for name in targets if name not in batch.properties]:
        raise ValueError(
            f"a target must be a property of the crystals, got {unknown[0]!r}; "
            f"there are {', '.join(batch.properties) or 'none'}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _LabelledRows:
    """All rows with their labels of one target."""

    counts: Float[Array, "row element"]
    """Atoms of each element in the reduced formula."""
    totals: Float[Array, " row"]
    """Labels per formula unit; NaN where there is none."""
    code: Float[Array, " row"]
    """Position of each row's fidelity."""
    reference: int
    """Position of the reference fidelity."""

    def at(self, position: int) -> Array:
        """Mask of the rows that have a label at this fidelity."""
        return np.asarray(np.isfinite(self.totals) & (self.code == position))


def _fit_fidelities(
    rows: _LabelledRows,
    num_fidelities: int,
    materials: Sequence[str] | None,
    *,
    ridge: float,
    pull: float | None,
    trim: float,
) -> Iterator[tuple[int, Float[Array, " element"], dict]]:
    """Position, baselines and statistics of every fidelity: the reference first, the others need its values."""
    chosen = rows.at(rows.reference)
    counts, totals = rows.counts[chosen], rows.totals[chosen]
    everything, nothing = np.ones(len(totals), dtype=bool), np.full(NUM_ELEMENTS + 1, np.nan)
    prior, fit = fit_trimmed(
        counts, totals, nothing, fitted=totals, chosen=everything, ridge=ridge, trim=trim
    )
    yield rows.reference, prior, fit
    others = [position for position in range(num_fidelities) if position != rows.reference]
    if not others:
        return
    partner = _reference_labels(rows, materials)
    change = rows.totals - partner
    # The reference's own label stands in for what its baseline leaves open.
    fitted = np.where(np.isfinite(change), rows.counts @ np.nan_to_num(prior) + change, rows.totals)
    for position in others:
        chosen = rows.at(position)
        counts = rows.counts[chosen]
        clean = _clean_rows(counts, np.isfinite(partner[chosen]))
        weights, fit = fit_trimmed(
            counts, rows.totals[chosen], prior, fitted=fitted[chosen], chosen=clean, ridge=pull, trim=trim
        )
        yield position, weights, fit


def formula_units(
    batch: CrystalBatch,
) -> tuple[Float[Array, "crystal element"], Int[Array, " crystal"], Int[Array, " crystal"]]:
    """Per crystal: atoms of each element (by atomic number) in the reduced formula, formula units, their atoms."""
    width = NUM_ELEMENTS + 1
    cells = (batch.crystal_index * width + batch.atomic_numbers).cpu().numpy()
    counts = np.bincount(cells, minlength=len(batch) * width).reshape(len(batch), width)
    units = np.gcd.reduce(counts, axis=1)
    reduced = counts // units[:, None]
    return reduced.astype(float), units, reduced.sum(1)


def _reference_labels(rows: _LabelledRows, materials: Sequence[str] | None) -> Float[Array, " row"]:
    """For each row the label of its material (of the same formula) at the reference; NaN where it has none."""
    if materials is None:
        return np.full(len(rows.totals), np.nan)
    keys = [(name, row.tobytes()) for name, row in zip(materials, rows.counts, strict=True)]
    by_material = {keys[row]: rows.totals[row] for row in np.flatnonzero(rows.at(rows.reference))}
    return np.array([by_material.get(key, np.nan) for key in keys])


def _clean_rows(counts: Float[Array, "row element"], has_partner: Array) -> Array:
    """Rows with a partner at the reference, and those with an element that none of them has."""
    lacking = ~(counts[has_partner] > 0).any(0)
    return np.asarray(has_partner | (counts[:, lacking] > 0).any(1))


FORMAT = 1


def write_baselines(
    path: str | Path,
    baselines: ElementBaselines,
    fits: Sequence[BaselineFit],
    *,
    units: Mapping[str, str],
    reference: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write the table as YAML, atomically.

    Args:
        path: the file.
        baselines: the table; targets of extent `none` are left out.
        fits: how each fidelity and target was fitted.
        units: of the targets.
        reference: name of the reference fidelity.
        provenance: plain values: source, hash, settings of the fit.
    """
    targets = {
        target: {
            "extent": baselines.extents[column].value,
            "unit": units[target],
            "fidelities": {
                fidelity: {"elements": _by_symbol(baselines, position, column)}
                | _said(fits, fidelity, target)
                for position, fidelity in enumerate(baselines.fidelities)
            },
        }
        for column, target in enumerate(baselines.targets)
        if baselines.extents[column] is not Extent.NONE
    }
    content = {
        "format": FORMAT,
        "reference": reference,
        "provenance": dict(provenance),
        "targets": targets,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _by_symbol(baselines: ElementBaselines, position: int, column: int) -> dict[str, float]:
    values = enumerate(baselines.values[position, column].tolist())
    return {SYMBOLS[number - 1]: value for number, value in values if not math.isnan(value)}


def _said(fits: Sequence[BaselineFit], fidelity: str, target: str) -> dict[str, Any]:
    for fit in fits:
        if (fit.fidelity, fit.target) == (fidelity, target):
            return {
                "inherited": [SYMBOLS[number - 1] for number in fit.inherited],
                "num_rows": fit.num_rows,
                "num_trimmed": fit.num_trimmed,
                "label_std": fit.label_std,
                "residual_mean": fit.residual_mean,
                "residual_mae": fit.residual_mae,
                "residual_rmse": fit.residual_rmse,
            }
    return {}
