"""Cells by crystal family: any six numbers give a valid cell, and only those that the family leaves free are kept.

A conventional cell is lower triangular with rows a = (A, 0, 0), b = (p A, B, 0), c = (q A, r B, C). The six numbers
are ln(V/N), ln(B/A), ln(C/A), p, q and r, with V/N the volume per atom in Å^3. A family fixes some of them: cubic
cells keep the volume, hexagonal and tetragonal ones ln(C/A), orthorhombic ones both ratios, monoclinic ones also q,
triclinic ones all. Unlike lengths and angles, every vector is a cell.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_COMPONENTS = 6
FAMILIES = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
_FIRST_GROUPS = (1, 3, 16, 75, 143, 195)
_HEXAGONAL = 4

FREE = np.array(
    [
        [True, True, True, True, True, True],
        [True, True, True, False, True, False],
        [True, True, True, False, False, False],
        [True, False, True, False, False, False],
        [True, False, True, False, False, False],
        [True, False, False, False, False, False],
    ]
)
"""[family component]: what a family leaves free."""


def family_of_number(number: int) -> int:
    """Position in `FAMILIES` of the crystal family of one space group."""
    return int(np.searchsorted(_FIRST_GROUPS, number, side="right")) - 1


def family_of(groups: Int[Tensor, " crystal"]) -> Int[Tensor, " crystal"]:
    """Position in `FAMILIES` of the crystal family of each space group (trigonal ones are hexagonal)."""
    first = torch.from_numpy(np.array(_FIRST_GROUPS)).to(groups.device)
    return torch.searchsorted(first, groups, right=True) - 1


def free_components(groups: Int[Tensor, " crystal"]) -> Bool[Tensor, "crystal 6"]:
    """Components of the cell that each space group leaves free."""
    return torch.from_numpy(FREE).to(groups.device)[family_of(groups)]


def cell_components(
    lattice: Float[np.ndarray, "3 3"], number: int, num_atoms: int
) -> Float[np.ndarray, " 6"]:
    """The six numbers of a conventional cell, those that its space group fixes at 0.

    Args:
        lattice: rows, Å, in any orientation.
        number: the space group.
        num_atoms: in this cell.
    """
    # R of the QR decomposition is the cell with a along x and b in the plane of x and y, up to signs.
    triangle = np.linalg.qr(lattice.T)[1].T
    triangle = triangle * np.sign(np.diag(triangle))
    (first, _, _), (shear_b, second, _), (shear_c, middle, third) = triangle
    full = np.array(
        [
            np.log(first * second * third / num_atoms),
            np.log(second / first),
            np.log(third / first),
            shear_b / first,
            shear_c / first,
            middle / second,
        ]
    )
    return np.where(FREE[family_of_number(number)], full, 0.0)


def lattices(
    cell: Float[Tensor, "crystal 6"], groups: Int[Tensor, " crystal"], num_atoms: Int[Tensor, " crystal"]
) -> Float[Tensor, "crystal 3 3"]:
    """Conventional lattices (rows, Å) of the six numbers; components that the family fixes are not read.

    Args:
        cell: as `cell_components` gives them.
        groups: space groups.
        num_atoms: atoms in the conventional cell.
    """
    family = family_of(groups)
    free = torch.from_numpy(FREE).to(cell.device)[family]
    values = torch.where(free, cell, torch.zeros_like(cell))
    is_hexagonal = family == _HEXAGONAL
    half = values.new_full((), -0.5)
    log_b = torch.where(is_hexagonal, values.new_full((), float(np.log(np.sqrt(3) / 2))), values[:, 1])
    shear = torch.where(is_hexagonal, half, values[:, 3])
    log_volume = values[:, 0] + num_atoms.to(cell.dtype).log()
    first = ((log_volume - log_b - values[:, 2]) / 3).exp()
    second, third = first * log_b.exp(), first * values[:, 2].exp()
    zero = torch.zeros_like(first)
    return torch.stack(
        [
            torch.stack([first, zero, zero], dim=-1),
            torch.stack([shear * first, second, zero], dim=-1),
            torch.stack([values[:, 4] * first, values[:, 5] * second, third], dim=-1),
        ],
        dim=1,
    )
