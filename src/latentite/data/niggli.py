"""All Niggli-reduced bases of a lattice, within a tolerance: a symmetric lattice has many (a cubic one 24).

A reducer returns one of them, and which one flips with noise where a cell is nearly but not exactly
symmetric. Here moyopy's reduction (the only reducer in use) gives short vectors, every right-handed basis
made of short vectors is listed, and each gets a *continuous* measure of how far it is from the Niggli
conditions. `canonical.py` chooses among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float, Int, Real

TOLERANCE = 2e-4
"""Relative differences of lengths, and cosines, below about this count as no difference between bases."""

_VECTORS = np.array([v for v in product((-1, 0, 1), repeat=3) if v > (0, 0, 0)], dtype=np.float64)
"""The 13 short lattice vectors, up to sign, among which every reduced basis is found."""

_SIGNS = np.array([(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)], dtype=np.float64)
"""Reversals of basis vectors that keep the handedness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReducedBases:
    """Bases of many lattices; those of one lattice stand together, in the order of the lattices."""

    owners: Int[np.ndarray, " basis"]
    """Position of the lattice that each basis belongs to."""
    matrices: Float[np.ndarray, "basis 3 3"]
    """Integers of determinant +1: the basis is `matrix @ lattice`."""
    lengths: Float[np.ndarray, "basis 3"]
    """a, b and c in Å."""
    cosines: Float[np.ndarray, "basis 3"]
    """Of alpha, beta and gamma."""
    violation: Float[np.ndarray, " basis"]
    """Distance from the Niggli conditions (relative lengths and cosines): 0 for a clear case, less than
    `TOLERANCE` above the smallest of the lattice for every basis listed."""


def niggli_transformations(
    lattices: Float[np.ndarray, "crystal 3 3"], *, first_position: int = 0
) -> Float[np.ndarray, "crystal 3 3"]:
    """Integer matrices R such that `R @ lattice` is a right-handed Niggli cell.

    Args:
        lattices: Å.
        first_position: position of the first lattice in the caller's list, for messages.

    Raises:
        ValueError: naming the position of a lattice that is flat or not finite.
    """
    from moyopy import niggli_reduce

    transformations = []
    for position, lattice in enumerate(lattices.tolist(), start=first_position):
        try:
            transformations.append(niggli_reduce(lattice)[1])
        except ValueError:
            transformations.append(_reduce_in_two_steps(lattice, position))
    # moyopy's transformation T means reduced = T.T @ lattice.
    return np.array(transformations, dtype=np.float64).transpose(0, 2, 1)


def _reduce_in_two_steps(lattice: list[list[float]], position: int) -> list[list[int]]:
    """For cells so skew (vectors of 10,000 Å and more) that the Niggli steps alone do not come to an end."""
    from moyopy import minkowski_reduce, niggli_reduce

    try:
        short, first = minkowski_reduce(lattice)
        second = niggli_reduce(short)[1]
    except ValueError as error:
        raise ValueError(f"the lattice of crystal {position} cannot be reduced: {error}") from error
    total: list[list[int]] = (np.array(first) @ np.array(second)).tolist()
    return total


def reduced_bases(lattices: Float[np.ndarray, "crystal 3 3"]) -> ReducedBases:
    """Every basis of every lattice that is Niggli-reduced within `TOLERANCE`.

    Args:
        lattices: Å; reduced and right-handed already, so that every other reduced basis has only the
            coefficients -1, 0 and 1 with respect to it.
    """
    gram = multiply(lattices, lattices.transpose(0, 2, 1))
    vectors = np.broadcast_to(_VECTORS, (len(lattices), *_VECTORS.shape))
    dots = multiply(multiply(vectors, gram), _VECTORS.T[None])  # crystal vector vector
    norms = np.sqrt(np.diagonal(dots, axis1=1, axis2=2))
    shortest = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    is_allowed = np.abs(norms[:, None, :] / shortest[:, :, None] - 1.0) < 4.0 * TOLERANCE
    lists = [_triples(row.tobytes()) for row in is_allowed]
    owners = np.repeat(np.arange(len(lattices)), [len(triples) for triples, _ in lists])
    triples = np.concatenate([triples for triples, _ in lists])
    handedness = np.concatenate([handedness for _, handedness in lists])

    lengths = norms[owners[:, None], triples]
    a, b, c = triples.T
    cosines = np.stack([dots[owners, b, c], dots[owners, a, c], dots[owners, a, b]], axis=1)
    cosines /= lengths[:, [1, 0, 0]] * lengths[:, [2, 2, 1]]
    # Reversing a and b, say, changes the signs of the other two products: cos alpha and cos beta.
    reversed_cosines = cosines[:, None] * _SIGNS
    is_acute = (reversed_cosines > -TOLERANCE).all(axis=2)
    is_obtuse = (reversed_cosines < 2.0 * TOLERANCE).all(axis=2)
    place, sign = np.nonzero(is_acute | is_obtuse)
    owners, lengths, cosines = owners[place], lengths[place], reversed_cosines[place, sign]

    violation = np.minimum(_violation_acute(cosines, lengths), _violation_obtuse(cosines, lengths))
    smallest = np.minimum.reduceat(violation, np.searchsorted(owners, np.arange(len(lattices))))
    keep = np.flatnonzero(violation <= smallest[owners] + TOLERANCE)
    place, sign = place[keep], sign[keep]
    matrices = _VECTORS[triples[place]] * (_SIGNS[sign] * handedness[place, None])[:, :, None]
    return ReducedBases(
        owners=owners[keep],
        matrices=matrices,
        lengths=lengths[keep],
        cosines=cosines[keep],
        violation=violation[keep],
    )


@lru_cache(maxsize=4096)
def _triples(allowed: bytes) -> tuple[Int[np.ndarray, "triple 3"], Float[np.ndarray, " triple"]]:
    """All a, b and c (positions in `_VECTORS`) that span the lattice, and their determinants, +1 or -1.

    Args:
        allowed: three rows of 13 booleans: which vectors are short enough to be a, b, c.
    """
    slots = np.frombuffer(allowed, dtype=bool).reshape(3, len(_VECTORS))
    triples = np.array(list(product(*(np.flatnonzero(slot) for slot in slots))))
    determinants = determinant(_VECTORS[triples])
    spans = np.abs(determinants) == 1
    return triples[spans], determinants[spans]


# ------------------------------------------------------------------------------------ Niggli conditions


@dataclass(frozen=True, slots=True)
class _Quantities:
    """Quantities in the conditions of International Tables A, section 3.1.3, made dimensionless.

    Every quantity is divided by the two lengths in it: `bc` is the absolute cosine of b and c, `bc_slack` is
    zero where 2 b.c equals b.b.
    """

    a: Float[np.ndarray, " basis"]
    b: Float[np.ndarray, " basis"]
    c: Float[np.ndarray, " basis"]
    bc: Float[np.ndarray, " basis"]
    ac: Float[np.ndarray, " basis"]
    ab: Float[np.ndarray, " basis"]
    a_to_b: Float[np.ndarray, " basis"]
    b_to_c: Float[np.ndarray, " basis"]
    bc_slack: Float[np.ndarray, " basis"]
    ac_slack: Float[np.ndarray, " basis"]
    ab_slack: Float[np.ndarray, " basis"]
    common: Float[np.ndarray, " basis"]
    """Violation of the conditions that both types of cell share."""


def _quantities(cosines: Float[np.ndarray, "basis 3"], lengths: Float[np.ndarray, "basis 3"]) -> _Quantities:
    a, b, c = lengths.T
    bc, ac, ab = np.abs(cosines).T
    a_to_b, b_to_c = b / a - 1.0, c / b - 1.0
    slacks = b / c - 2.0 * bc, a / c - 2.0 * ac, a / b - 2.0 * ab
    common = sum((np.maximum(0.0, -q) for q in (a_to_b, b_to_c, *slacks)), np.zeros_like(a))
    return _Quantities(a, b, c, bc, ac, ab, a_to_b, b_to_c, *slacks, common)


def _unless(
    distance: Float[np.ndarray, " basis"], excess: Float[np.ndarray, " basis"]
) -> Float[np.ndarray, " basis"]:
    """Violation of the rule "where `distance` is zero, `excess` must not be positive", as a continuous number.

    A rule with an "if equal" in it flips with noise; here it fades out as the distance nears the tolerance.
    """
    return np.maximum(0.0, np.minimum(excess, TOLERANCE - distance))


def _violation_acute(
    cosines: Float[np.ndarray, "basis 3"], lengths: Float[np.ndarray, "basis 3"]
) -> Float[np.ndarray, " basis"]:
    """Distance of each basis from a Niggli cell of type I (all angles acute)."""
    q = _quantities(cosines, lengths)
    return (
        q.common
        + np.maximum(0.0, TOLERANCE - cosines).sum(axis=1)
        + _unless(q.a_to_b, q.bc * q.b / q.a - q.ac)
        + _unless(q.b_to_c, q.ac * q.c / q.b - q.ab)
        + _unless(q.bc_slack, q.ab * q.b / q.c - 2.0 * q.ac)
        + _unless(q.ac_slack, q.ab * q.a / q.c - 2.0 * q.bc)
        + _unless(q.ab_slack, q.ac * q.a / q.b - 2.0 * q.bc)
    )


def _violation_obtuse(
    cosines: Float[np.ndarray, "basis 3"], lengths: Float[np.ndarray, "basis 3"]
) -> Float[np.ndarray, " basis"]:
    """Distance of each basis from a Niggli cell of type II (no angle acute)."""
    q = _quantities(cosines, lengths)
    # Zero where a + b + c is as long as c.
    diagonal_slack = (
        q.a * q.a + q.b * q.b - 2.0 * (q.bc * q.b * q.c + q.ac * q.a * q.c + q.ab * q.a * q.b)
    ) / (q.c * q.c)
    return (
        q.common
        + np.maximum(0.0, cosines).sum(axis=1)
        + np.maximum(0.0, -diagonal_slack)
        + _unless(q.a_to_b, q.bc * q.b / q.a - q.ac)
        + _unless(q.b_to_c, q.ac * q.c / q.b - q.ab)
        + _unless(q.bc_slack, q.ab)
        + _unless(q.ac_slack, q.ab)
        + _unless(q.ab_slack, q.ac)
        + _unless(diagonal_slack, q.a / q.c - 2.0 * q.ac - q.ab * q.b / q.c)
    )


# ------------------------------------------------------------------------------------- 3x3 algebra
# Written out: exact for integers, and free of a BLAS whose last bits depend on the shape of the batch.


def multiply(
    left: Float[np.ndarray, "batch row 3"], right: Float[np.ndarray, "#batch 3 column"]
) -> Float[np.ndarray, "batch row column"]:
    """Matrix products of stacks of small matrices; a stack of one on the right serves all on the left."""
    result = left[:, :, 0, None] * right[:, None, 0]
    result += left[:, :, 1, None] * right[:, None, 1]
    result += left[:, :, 2, None] * right[:, None, 2]
    return result


def cross(first: Real[np.ndarray, "... 3"], second: Real[np.ndarray, "... 3"]) -> Real[np.ndarray, "... 3"]:
    """Vector products; several times faster than `numpy.cross` on short arrays."""
    x, y, z = first[..., 0], first[..., 1], first[..., 2]
    u, v, w = second[..., 0], second[..., 1], second[..., 2]
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=-1)


def determinant(matrices: Real[np.ndarray, "... 3 3"]) -> Real[np.ndarray, "..."]:
    """Determinants, exact for small integers."""
    return np.asarray((matrices[..., 0, :] * cross(matrices[..., 1, :], matrices[..., 2, :])).sum(axis=-1))


def integer_inverse(matrices: Real[np.ndarray, "... 3 3"]) -> Real[np.ndarray, "... 3 3"]:
    """Inverses of integer matrices of determinant +1 or -1: integers again, without rounding errors."""
    a, b, c = matrices[..., 0, :], matrices[..., 1, :], matrices[..., 2, :]
    columns = np.stack([cross(b, c), cross(c, a), cross(a, b)], axis=-1)
    return columns * (a * columns[..., 0]).sum(axis=-1)[..., None, None]
