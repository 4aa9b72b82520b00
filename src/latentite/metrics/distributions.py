"""How far the distribution of a property among generated crystals is from that of the data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
from jaxtyping import Float


def wasserstein(generated: Float[np.ndarray, " crystal"], reference: Float[np.ndarray, " crystal"]) -> float:
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
