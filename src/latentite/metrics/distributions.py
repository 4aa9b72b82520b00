"""A generated set as a whole: distributions and features held against those of the data, coverage, and diversity.

- Wasserstein distance and Jensen-Shannon divergence of one property.
- Fréchet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, arXiv 1706.08500, eq. 6,
  there with Inception's features): F = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). The features can be anything with
  one row per crystal: pooled latents of a VAE or the descriptors of `fingerprints.py`. Numbers of different feature
  spaces or sample sizes cannot be compared: the estimate has a positive bias of about d / n.
- Vendi score, the effective number of different crystals (Friedman & Dieng 2023, arXiv 2210.02410, definition 3.1):
  exp(-sum_i l_i log l_i), l_i the eigenvalues of K / n, K a similarity matrix with ones on its diagonal; 1 when all
  crystals are equal, n when none resembles another. It needs no reference, and grows with n: compare sets of equal
  size. `entropy_bits` is the entropy of a named variable instead.
- Coverage: how much of the reference a generated set reaches, and how much of it lies where the reference is.

Coverage has two numbers: COV-R is the share of reference crystals that have a generated one near, COV-P the share of
generated crystals that have a reference one near (CDVAE, Xie et al. 2022, arXiv 2110.06197, section 5.2; after Xu et
al. 2021 for molecules). Near means: within a cut-off in a structure fingerprint and within another in a composition
fingerprint, Euclidean. Two readings of this are in use, and both are here:

- joint: one and the same crystal is within both cut-offs, as the paper says;
- separate: some crystal is within the first, some crystal within the second, as the paper's code computes it (the
  minimum over crystals is taken for each distance on its own). It is never smaller, and it is what all published
  tables hold.

CDVAE's fingerprints are the mean over atoms of matminer's CrystalNN site fingerprint, as it is, and Magpie's
composition fingerprint, standardised by the training set (`fingerprints.fit_scaling`); `fingerprints.crystal_nn` and
`fingerprints.magpie` compute both, equal to matminer's. `CDVAE_CUTOFFS` belong to these; what is left of a difference
is the scaling, which CDVAE has as a table of constants. With any other pair of fingerprints, `fingerprints.radial`
among them, take `calibrated_cutoffs`: then the numbers must not be put beside CDVAE's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Real

from latentite.metrics.rates import Rate


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


_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutoffs:
    """Largest distances that count as near, in the units of the two fingerprints."""

    structure: float
    composition: float

    def __post_init__(self) -> None:
        for name, value in (("structure", self.structure), ("composition", self.composition)):
            if not value >= 0:
                raise ValueError(f"the {name} cut-off must be at least 0, got {value}")


CDVAE_CUTOFFS = {
    "mp_20": Cutoffs(structure=0.4, composition=10.0),
    "carbon_24": Cutoffs(structure=0.2, composition=4.0),
    "perov_5": Cutoffs(structure=0.2, composition=4.0),
}
"""For mean CrystalNN and standardised Magpie fingerprints; from CDVAE's evaluation code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FingerprintSet:
    """Both fingerprints of some crystals; a row with a number that is not finite has none, and is near nothing."""

    structure: Float[np.ndarray, "crystal structure_feature"]
    composition: Float[np.ndarray, "crystal composition_feature"]

    def __post_init__(self) -> None:
        if len(self.structure) != len(self.composition):
            raise ValueError(
                "structure and composition fingerprints must belong to the same crystals, got "
                f"{len(self.structure)} and {len(self.composition)} rows"
            )

    @property
    def is_known(self) -> Bool[np.ndarray, " crystal"]:
        """True for crystals that have both."""
        return np.isfinite(self.structure).all(-1) & np.isfinite(self.composition).all(-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Both rates in both readings. A crystal without fingerprints counts in the denominator, never as near."""

    recall: Rate
    precision: Rate
    recall_separate: Rate
    precision_separate: Rate
    structure_recall_distance: float
    """Mean distance of a reference crystal to the nearest generated one (CDVAE's AMSD-R); NaN of none."""
    structure_precision_distance: float
    composition_recall_distance: float
    """The same in composition (AMCD-R)."""
    composition_precision_distance: float


def coverage(generated: FingerprintSet, reference: FingerprintSet, cutoffs: Cutoffs) -> Coverage:
    """Coverage of a reference by generated crystals. In blocks, so that no [generated reference] matrix is kept.

    Raises:
        ValueError: when the two sets have different numbers of features.
    """
    known, known_reference = generated.is_known, reference.is_known
    sides = _nearest(generated, reference, known, known_reference, cutoffs)
    distances = sides.distances
    is_near = {
        name: (distances[f"structure_{name}"] <= cutoffs.structure)
        & (distances[f"composition_{name}"] <= cutoffs.composition)
        for name in ("recall", "precision")
    }

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) and np.isfinite(values).all() else float("nan")

    return Coverage(
        recall=Rate(numerator=int(sides.joint_recall.sum()), denominator=len(known_reference)),
        precision=Rate(numerator=int(sides.joint_precision.sum()), denominator=len(known)),
        recall_separate=Rate(numerator=int(is_near["recall"].sum()), denominator=len(known_reference)),
        precision_separate=Rate(numerator=int(is_near["precision"].sum()), denominator=len(known)),
        structure_recall_distance=mean(distances["structure_recall"]),
        structure_precision_distance=mean(distances["structure_precision"]),
        composition_recall_distance=mean(distances["composition_recall"]),
        composition_precision_distance=mean(distances["composition_precision"]),
    )


def calibrated_cutoffs(
    training: FingerprintSet, held_out: FingerprintSet, *, quantile: float = 0.9
) -> Cutoffs:
    """Cut-offs for fingerprints that have no published ones: quantiles of distances between real crystals.

    For each held-out crystal the distance to the nearest training crystal is found, in structure and in composition
    on their own; the cut-offs are the given quantile of each. So real held-out data have a recall_separate against
    the training set of roughly that quantile or less, and a generated set is measured with the same ruler.

    Raises:
        ValueError: for a quantile outside (0, 1], or when a side has no crystal with both fingerprints.
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must be above 0 and at most 1, got {quantile}")
    known, known_training = held_out.is_known, training.is_known
    if not known.any() or not known_training.any():
        raise ValueError("both sets must hold a crystal with finite fingerprints, got none on a side")
    anything = Cutoffs(structure=np.inf, composition=np.inf)
    distances = _nearest(held_out, training, known, known_training, anything).distances
    structure, composition = (
        float(np.quantile(distances[f"{kind}_precision"], quantile)) for kind in ("structure", "composition")
    )
    return Cutoffs(structure=structure, composition=composition)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sides:
    distances: dict[str, np.ndarray]
    """`<structure or composition>_<recall or precision>`: to the nearest on the other side, of known crystals."""
    joint_recall: np.ndarray
    joint_precision: np.ndarray


def _nearest(
    generated: FingerprintSet,
    reference: FingerprintSet,
    known: np.ndarray,
    known_reference: np.ndarray,
    cutoffs: Cutoffs,
) -> _Sides:
    """Smallest distances in both directions, one block of generated crystals after the other."""
    sides: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "structure": (generated.structure[known], reference.structure[known_reference]),
        "composition": (generated.composition[known], reference.composition[known_reference]),
    }
    for kind, (one, other) in sides.items():
        if one.shape[1] != other.shape[1]:
            raise ValueError(
                f"{kind} fingerprints must have equally many features, got {one.shape[1]} and {other.shape[1]}"
            )
    count, count_reference = int(known.sum()), int(known_reference.sum())
    distances = {
        f"{kind}_{side}": np.full(size, np.inf)
        for kind in sides
        for side, size in (("recall", count_reference), ("precision", count))
    }
    joint_recall, joint_precision = np.zeros(count_reference, bool), np.zeros(count, bool)
    step = max(1, _NUMBERS_AT_ONCE // max(count_reference, 1))
    for start in range(0, count if count_reference else 0, step):
        block = slice(start, start + step)
        pairs = {kind: _distances(one[block], other) for kind, (one, other) in sides.items()}
        for kind, matrix in pairs.items():
            np.minimum(distances[f"{kind}_recall"], matrix.min(0), out=distances[f"{kind}_recall"])
            distances[f"{kind}_precision"][block] = matrix.min(1)
        both = (pairs["structure"] <= cutoffs.structure) & (pairs["composition"] <= cutoffs.composition)
        joint_recall |= both.any(0)
        joint_precision[block] = both.any(1)
    return _Sides(distances=distances, joint_recall=joint_recall, joint_precision=joint_precision)


def _distances(
    one: Float[np.ndarray, "row feature"], other: Float[np.ndarray, "column feature"]
) -> Float[np.ndarray, "row column"]:
    """Euclidean distances as one matrix product, ten times as fast as `cdist` in a hundred dimensions.

    `|x|^2 + |y|^2 - 2 x.y` is exact to about 1e-14 of the norms, so less than 1e-12 of them is 0: equal rows have
    the distance 0, whatever the cut-off. The norms are kept small by taking the mean off.
    """
    centre = other.mean(axis=0)
    first, second = one - centre, other - centre
    norms = (first**2).sum(-1)[:, None] + (second**2).sum(-1)
    squared = first @ second.T
    squared *= -2.0
    squared += norms
    norms *= 1e-12
    squared[squared < norms] = 0.0
    return np.sqrt(squared, out=squared)
