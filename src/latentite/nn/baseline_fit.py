"""Element baselines fitted to the labels of a training split, fidelity by fidelity.

Ridge least squares of totals per formula unit on the numbers of atoms of each element, as self-atomic energies are
fitted for potentials; the rows with the largest residuals on either side are left out of a second fit. Every fidelity
but the reference is pulled towards the reference's values, as strongly as cross-validation finds best: few rows do not
say much about many elements, and what they seem to say the network would have to take back. An element that a
fidelity never saw has exactly those values. Comes after `baselines.py`; `baseline_file.py` writes what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import FIDELITY, CrystalBatch
from latentite.nn.baselines import NUM_ELEMENTS, ElementBaselines, Extent

Array = np.ndarray
PULLS = tuple(10.0**power for power in range(-3, 7))
"""Weights of the pull towards the reference that are tried; 1 is as much as one row with one atom of the element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineFit:
    """How one fidelity and target was fitted; residuals are label minus baseline, in the unit of the labels."""

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
    ridge: float = 1e-3,
    pull: float | None = None,
    trim: float = 0.02,
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
    if reference not in fidelities:
        raise ValueError(f"reference must be one of {', '.join(fidelities)}, got {reference!r}")
    if not 0.0 <= trim < 0.5 or not ridge >= 0.0:
        raise ValueError(f"trim must be in [0, 0.5) and ridge 0 or more, got {trim} and {ridge}")
    if unknown := [name for name in targets if name not in batch.properties]:
        raise ValueError(
            f"a target must be a property of the crystals, got {unknown[0]!r}; "
            f"there are {', '.join(batch.properties) or 'none'}"
        )
    baselines = ElementBaselines(fidelities=fidelities, targets=targets, extents=extents)
    counts, units, atoms = formula_units(batch)
    codes = batch.properties.get(FIDELITY)
    code = np.zeros(len(batch)) if codes is None else codes.cpu().numpy()
    # The reference comes first: the others need its values.
    order = sorted(range(len(fidelities)), key=lambda position: fidelities[position] != reference)
    fits = []
    for column, (target, extent) in enumerate(zip(targets, baselines.extents, strict=True)):
        if extent is Extent.NONE:
            continue
        labels = batch.properties[target].double().cpu().numpy()
        # PER_ATOM labels times the atoms of a formula unit, TOTAL ones by the number of formula units.
        per_unit = labels * atoms if extent is Extent.PER_ATOM else labels / units
        prior = np.full(NUM_ELEMENTS + 1, np.nan)
        for position in order:
            rows = np.isfinite(per_unit) & (code == position)
            if fidelities[position] == reference and not rows.any():
                raise ValueError(f"{target} must have labels at the reference fidelity {reference}, got none")
            is_reference = fidelities[position] == reference
            strength = ridge if is_reference else pull
            fitted, partner = per_unit, np.full(len(batch), np.nan)
            if materials is not None and not is_reference:
                partner = _reference_labels(counts, per_unit, code == fidelities.index(reference), materials)
                # The reference's own label stands in for what its baseline leaves open.
                change = per_unit - partner
                fitted = np.where(np.isfinite(change), counts @ np.nan_to_num(prior) + change, per_unit)
            weights, fit = _fit_one(
                counts[rows],
                per_unit[rows],
                prior,
                fitted=fitted[rows],
                chosen=_clean_rows(counts[rows], np.isfinite(partner[rows])),
                ridge=strength,
                trim=trim,
            )
            baselines.values[position, column] = torch.from_numpy(weights)
            fits.append(BaselineFit(fidelity=fidelities[position], target=target, **fit))
            if is_reference:
                prior = weights
    return baselines, fits


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


def residuals(
    baselines: ElementBaselines, batch: CrystalBatch, fidelity_index: Int[Tensor, " crystal"]
) -> Float[Tensor, "crystal target"]:
    """Labels minus baselines: what is left to learn; NaN where there is no label.

    Raises:
        ValueError: naming an element without a baseline.
    """
    labels = torch.stack([batch.properties[name] for name in baselines.targets], dim=1)
    return labels - baselines(batch, fidelity_index)


def _reference_labels(
    counts: Float[Array, "row element"],
    labels: Float[Array, " row"],
    is_reference: Array,
    materials: Sequence[str],
) -> Float[Array, " row"]:
    """For each row the label of its material (of the same formula) at the reference; NaN where it has none."""
    keys = [(name, row.tobytes()) for name, row in zip(materials, counts, strict=True)]
    known = np.flatnonzero(is_reference & np.isfinite(labels))
    by_material = {keys[row]: labels[row] for row in known}
    return np.array([by_material.get(key, np.nan) for key in keys])


def _clean_rows(counts: Float[Array, "row element"], has_partner: Array) -> Array:
    """Rows with a partner at the reference, and those with an element that none of them has."""
    lacking = ~(counts[has_partner] > 0).any(0)
    return np.asarray(has_partner | (counts[:, lacking] > 0).any(1))


def _fit_one(
    counts: Float[Array, "row element"],
    totals: Float[Array, " row"],
    prior: Float[Array, " element"],
    *,
    fitted: Float[Array, " row"],
    chosen: Array,
    ridge: float | None,
    trim: float,
) -> tuple[Float[Array, " element"], dict]:
    """Fit the rows `chosen` of `fitted`; the statistics are of all `totals`."""
    occurs = np.asarray((counts > 0).any(0))
    is_inherited = ~occurs & np.isfinite(prior)
    size = counts.sum(1)
    kept = chosen.copy()
    weights = _ridge(counts[kept], fitted[kept], prior, occurs, ridge)
    if (num_cut := int(trim * kept.sum())) > 0:
        residual = (fitted - counts @ np.where(occurs, weights, 0.0)) / size
        ranked = np.flatnonzero(chosen)[residual[chosen].argsort(kind="stable")]
        kept[ranked[:num_cut]] = kept[ranked[-num_cut:]] = False
        lost = occurs & ~(counts[kept] > 0).any(0)
        kept |= chosen & (counts[:, lost] > 0).any(1)
        weights = _ridge(counts[kept], fitted[kept], prior, occurs, ridge)
    residual = (totals - counts @ np.where(occurs, weights, 0.0)) / size
    return weights, {
        "num_rows": len(totals),
        "num_trimmed": int((~kept).sum()),
        "fitted": tuple(np.flatnonzero(occurs).tolist()),
        "inherited": tuple(np.flatnonzero(is_inherited).tolist()),
        **_statistics(totals / size, residual, trim),
    }


def _ridge(
    counts: Float[Array, "row element"],
    totals: Float[Array, " row"],
    prior: Float[Array, " element"],
    occurs: Array,
    ridge: float | None,
) -> Float[Array, " element"]:
    """min |counts w - totals|^2 + ridge |w - prior|^2 for the elements that occur; the others keep their prior."""
    start = np.where(np.isfinite(prior), prior, 0.0)[occurs]
    used = counts[:, occurs]
    if ridge is None:
        ridge = cross_validated_ridge(used, totals - used @ start)
    # Ridge as rows below the system: better conditioned than the normal equations.
    system = np.vstack([used, np.sqrt(ridge) * np.eye(used.shape[1])])
    target = np.concatenate([totals - used @ start, np.zeros(used.shape[1])])
    weights = prior.copy()
    if used.size:
        weights[occurs] = start + np.linalg.lstsq(system, target, rcond=None)[0]
    return weights


def cross_validated_ridge(system: Float[Array, "row column"], target: Float[Array, " row"]) -> float:
    """The one of `PULLS` with the smallest generalised cross-validation error (Golub, Heath & Wahba 1979, eq. 1.4).

    Args:
        system: A.
        target: y; the fit is min |A x - y|^2 + ridge |x|^2.
    """
    spectrum, vectors = np.linalg.eigh(system.T @ system)
    spectrum = spectrum.clip(min=0.0)
    projected = vectors.T @ (system.T @ target)
    errors = []
    for ridge in PULLS:
        solution = projected / (spectrum + ridge)
        # |A x - y|^2, and the trace of 1 - A (A'A + ridge)^-1 A'
        square = target @ target - 2.0 * solution @ projected + solution**2 @ spectrum
        freedom = len(target) - (spectrum / (spectrum + ridge)).sum()
        errors.append(max(square, 0.0) / freedom**2)
    return PULLS[int(np.argmin(errors))] if len(target) else PULLS[-1]


def _statistics(labels: Array, residual: Array, trim: float) -> dict[str, object]:
    if not len(labels):
        nan = float("nan")
        names = ("label_std", "residual_mean", "residual_mae", "residual_rmse")
        return {**dict.fromkeys(names, nan), "residual_percentiles": (nan, nan)}
    low, high = np.quantile(residual, [trim, 1.0 - trim])
    return {
        "label_std": float(labels.std()),
        "residual_mean": float(residual.mean()),
        "residual_mae": float(np.abs(residual).mean()),
        "residual_rmse": float(np.sqrt((residual**2).mean())),
        "residual_percentiles": (float(low), float(high)),
    }
