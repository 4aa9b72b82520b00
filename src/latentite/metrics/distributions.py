"""A generated set as a whole: distributions and features held against those of the data, and its own diversity.

- Wasserstein distance and Jensen-Shannon divergence of one property.
- Fréchet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6,
  there with Inception's features): F = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The features can be anything with
  one row per crystal: pooled latents of a VAE or the descriptors of `fingerprints.py`. Numbers of different feature
  spaces or sample sizes cannot be compared: the estimate has a positive bias of about d / n.
- Vendi score, the effective number of different crystals (Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1):
  exp(-sum_i l_i log l_i), l_i the eigenvalues of K / n, K a similarity matrix with ones on its diagonal; 1 when all
  crystals are equal, n when none resembles another. It needs no reference, and grows with n: compare sets of equal
  size. `entropy_bits` is the entropy of a named variable instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real


def wasserstein(
    generated: Real[np.ndarray, " generated"], reference: Real[np.ndarray, " reference"]
) -> float:
    """Wasserstein-1 distance of two samples, in the unit of the property: the area between their cumulative
    distributions.

    CDVAE (Xie et al. 2022) reports it for the density (g/cm^3, `wdist_density`) and the number of elements
    (`wdist_num_elems`), over 1,000 valid structures against the test set. Values that are not finite are left
    out; NaN when nothing is left on a side.
    """
    from scipy.stats import wasserstein_distance

    sides = [side[np.isfinite(side)] for side in (generated, reference)]
    if not all(len(side) for side in sides):
        return math.nan
    return float(wasserstein_distance(*sides))


def entropy_bits(values: Iterable[Hashable]) -> float:
    """Shannon entropy of the frequencies of a named variable, in bits; NaN of nothing."""
    counts = np.array(list(Counter(values).values()), dtype=float)
    if not len(counts):
        return math.nan
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def jensen_shannon_bits(generated: Iterable[Hashable], reference: Iterable[Hashable]) -> float:
    """Jensen-Shannon divergence of two samples of names, in bits: 0 for equal frequencies, 1 for disjoint names.

    Lin 1991, IEEE Trans. Inf. Theory 37, 145. NaN when a side is empty.
    """
    counts = [Counter(generated), Counter(reference)]
    if not all(counts):
        return math.nan
    names = list(counts[0] | counts[1])
    shares = [np.array([side[name] for name in names]) / side.total() for side in counts]
    mixture = (shares[0] + shares[1]) / 2
    return _entropy(mixture) - (_entropy(shares[0]) + _entropy(shares[1])) / 2


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum())


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
