"""Fréchet distance of two sets of features: how far two clouds are apart in mean and shape.

Each set is taken for a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6, there with Inception's features):

    F = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

The features can be anything with one row per crystal: pooled latents of a VAE (`evaluation/latent_features.py`) or
the descriptors of `fingerprints.py`. Numbers of different feature spaces or of different sample sizes cannot be
compared: the estimate has a positive bias of about d / n. Imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """Mean and covariance of a cloud of features; enough to compare with, so a reference is kept as this."""

    mean: Float[np.ndarray, " feature"]
    covariance: Float[np.ndarray, "feature feature"]


def fit_gaussian(features: Float[np.ndarray, "crystal feature"]) -> Gaussian:
    """Mean and covariance (divided by n - 1) of the rows that hold finite numbers only.

    Raises:
        ValueError: when fewer than two such rows are left.
    """
    rows = np.asarray(features, dtype=np.float64)
    rows = rows[np.isfinite(rows).all(axis=-1)]
    if len(rows) < 2:
        raise ValueError(
            f"a Fréchet distance needs at least two rows of finite features on each side, got {len(rows)}"
        )
    centred = rows - (mean := rows.mean(axis=0))
    return Gaussian(mean=mean, covariance=centred.T @ centred / (len(rows) - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Fréchet distance (Wasserstein-2 distance, squared) of two Gaussians, in squared units of the features.

    The trace of (C1 C2)^(1/2) is the sum of the singular values of C1^(1/2) C2^(1/2): these are the square roots
    of the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), found without squaring the rounding error, so it holds
    for covariances of any rank.

    Raises:
        ValueError: when the two have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"both sides must have equally many features, got {len(first.mean)} and {len(second.mean)}"
        )
    shift = ((first.mean - second.mean) ** 2).sum()
    overlap = np.linalg.svd(_root(first.covariance) @ _root(second.covariance), compute_uv=False).sum()
    total = shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * overlap
    return float(max(total, 0.0))  # rounding can leave a small negative number


def frechet_diversity(distance: float) -> float:
    """`1 / (1 + F)`, from 0 to 1: what Chemeleon2 reports as diversity (1 for the distribution of the data)."""
    return 1.0 / (1.0 + distance)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
