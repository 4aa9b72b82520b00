"""Trimmed ridge regression of labels on the numbers of atoms of each element."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray
RIDGE = 1e-3
"""Weight of the pull of a reference's values towards 0, unless another is asked for."""
TRIM = 0.02
"""Share of the rows left out on either side, likewise."""
PULLS = tuple(10.0**power for power in range(-3, 7))
"""Weights of the pull towards a prior that are tried; 1 is as much as one row with one atom of the element."""


def fit_trimmed(
    counts: Float[Array, "row element"],
    totals: Float[Array, " row"],
    prior: Float[Array, " element"],
    *,
    fitted: Float[Array, " row"],
    chosen: Array,
    ridge: float | None,
    trim: float,
) -> tuple[Float[Array, " element"], dict]:
    """Fit rows twice, the second time without the largest residuals on either side.

    Args:
        counts: atoms of each element (by atomic number).
        totals: labels; the statistics are of all of them.
        prior: what the values are pulled towards, and stay where an element does not occur; NaN for none.
        fitted: what stands for the labels in the fit.
        chosen: rows that are fitted.
        ridge: weight of the pull; None for the one of `PULLS` that cross-validation prefers.
        trim: share of the rows left out on either side, by residual per atom. Rows without which an element
            would have no row at all stay.

    Returns:
        The values, and all of a `BaselineFit` but its names.
    """
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
