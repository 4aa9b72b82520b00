"""How far a relaxation has moved a crystal: atoms and cell."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.lattice import wrapped_difference
from latentite.nn.segment import segment_sum


def displacement_rmsd(before: CrystalBatch, after: CrystalBatch) -> Float[Tensor, " crystal"]:
    """Root mean square displacement of the atoms, Å, a common translation and a homogeneous strain taken out.

    sqrt(mean_i |u_i|^2), where u_i is the periodic difference of the fractional coordinates of atom i, less its
    mean over the atoms, in the mean of both cells. The atoms are followed one by one, so there is no matcher:
    `StructureMatcher.get_rms_dist`, which others report, may exchange atoms of one element, gives nothing where
    the structures no longer match, and divides by (volume per atom)^(1/3) unless told otherwise. This number is
    therefore never smaller than the matcher's in Å, and always there. Periodic differences are the shortest per
    axis, which in very skew cells need not be the shortest of all.

    Args:
        before: crystals in any cells.
        after: the same atoms in the same order.

    Returns:
        Å; NaN where coordinates or cells are not finite.
    """
    index, count = before.crystal_index, len(before)
    num_atoms = before.num_atoms.double()[:, None]
    moved = after.frac_coords.double() - before.frac_coords.double()
    # The mean on the torus first: atoms on both sides of half a cell would average to nowhere.
    angle = 2.0 * math.pi * moved
    common = torch.atan2(segment_sum(angle.sin(), index, count), segment_sum(angle.cos(), index, count))
    moved = wrapped_difference(moved, common[index] / (2.0 * math.pi))
    moved = moved - (segment_sum(moved, index, count) / num_atoms)[index]
    cell = 0.5 * (before.lattice.double() + after.lattice.double())
    squares = torch.einsum("ai,aij->aj", moved, cell[index]).square().sum(-1)
    return (segment_sum(squares, index, count) / num_atoms[:, 0]).sqrt()


def volume_change(before: CrystalBatch, after: CrystalBatch) -> Float[Tensor, " crystal"]:
    """Volume after over volume before, minus 1."""
    return after.volume.double() / before.volume.double() - 1.0
