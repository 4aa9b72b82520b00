"""Vendi score: the effective number of different crystals in a set.

    VS = exp(-sum_i l_i log l_i),  l_i the eigenvalues of K / n

(Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1), K a similarity matrix with ones on its diagonal: 1 when all
crystals are equal, n when none resembles another. It needs no reference, and grows with n: compare sets of equal
size. `distributions.entropy_bits` is the entropy of a named variable instead. Imports nothing of ours.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def vendi_score(features: Float[np.ndarray, "crystal feature"]) -> float:
    """Vendi score, with the cosine kernel, of the rows that hold finite numbers only; NaN when there are none.

    The kernel `x.y / |x||y|` has at most d eigenvalues that are not 0, found from the [d d] matrix when d < n, so the
    time grows linearly with n. A row of zeros resembles nothing, not even another one.

    Args:
        features: one row per crystal; standardised ones, else the features with the largest numbers decide.
    """
    rows = np.asarray(features, dtype=np.float64)
    rows = rows[np.isfinite(rows).all(axis=-1)]
    if len(rows) == 0:
        return math.nan
    return _exponential_entropy(_cosine_eigenvalues(rows))


def _cosine_eigenvalues(rows: np.ndarray) -> np.ndarray:
    """Eigenvalues of K / n; X X^T and X^T X share those that are not 0."""
    norms = np.linalg.norm(rows, axis=-1)
    zeros = int((norms == 0).sum())
    unit = rows[norms > 0] / norms[norms > 0, None]
    matrix = unit.T @ unit if unit.shape[1] < unit.shape[0] else unit @ unit.T
    return np.append(np.linalg.eigvalsh(matrix), np.ones(zeros)) / len(rows)


def _exponential_entropy(eigenvalues: np.ndarray) -> float:
    positive = eigenvalues[eigenvalues > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))
