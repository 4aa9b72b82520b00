"""Quality of predicted properties: errors of numbers, accuracy of classes, coverage of intervals."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def regression_metrics(
    labels: Float[np.ndarray, " crystal"], values: Float[np.ndarray, " crystal"]
) -> dict[str, float]:
    """Mean absolute error, root mean square error and coefficient of determination.

    Missing labels (NaN) are left out. The coefficient is NaN where the labels do not vary.

    Returns:
        `mae` and `rmse` in the unit of the labels, `r2`; empty without any label.
    """
    known = ~np.isnan(labels)
    if not known.any():
        return {}
    wanted = labels[known].astype(float)
    error = values[known].astype(float) - wanted
    spread = float(np.square(wanted - wanted.mean()).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": math.sqrt(float(np.square(error).mean())),
        "r2": 1.0 - float(np.square(error).sum()) / spread if spread > 0 else math.nan,
    }


def classification_metrics(
    labels: Float[np.ndarray, " crystal"], codes: Float[np.ndarray, " crystal"]
) -> dict[str, float]:
    """Share of the labelled crystals (not NaN) whose class is the predicted one; empty without any label."""
    known = ~np.isnan(labels)
    return {"accuracy": float((labels[known] == codes[known]).mean())} if known.any() else {}
