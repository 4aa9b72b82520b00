"""Features of elements beside their names, and descriptors of compositions by them."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_SYMBOLS = 119
"""Atomic numbers from 0, which stands for no atom, to 118."""
PERIODS = (2, 10, 18, 36, 54, 86, 118)
"""Last atomic number of each period."""
NUM_SHARES = 7
"""Shares of a composition that are told by size."""
NUM_ROLES = 4
"""Elements of a composition that are told by role: that of the largest share first, of equal ones the least
electronegative."""
_NUM_SCALARS = 6
"""Element features at the end that are numbers of their own."""


def as_tensor(values: Float[np.ndarray, "*row"]) -> Float[Tensor, "*row"]:
    """On the CPU, also where a network is built on the meta device, which checks of checkpoints do."""
    return torch.from_numpy(values.astype(np.float32))


def one_hot(values: Int[np.ndarray, " row"], num: int) -> Float[np.ndarray, "row class"]:
    """Rows of the identity."""
    return np.eye(num)[values]


@cache
def element_features() -> Float[Tensor, "symbol feature"]:
    """Place in the periodic table, electronegativity and radius of each element; the row at 0 is zero."""
    from ase.data import covalent_radii as known_radii
    from pymatgen.core import Element

    rows = [np.zeros(7 + 18 + 6)]
    for number in range(1, NUM_SYMBOLS):
        element = Element.from_Z(number)
        period = int(np.searchsorted(PERIODS, number))
        with warnings.catch_warnings():  # that noble gases and the heaviest elements have none
            warnings.simplefilter("ignore")
            electronegativity = element.X if element.X == element.X else 1.3
        radius = known_radii[number] if number < len(known_radii) else 1.6
        rows.append(
            np.concatenate(
                [
                    one_hot(np.array([period]), 7)[0],
                    one_hot(np.array([element.group - 1]), 18)[0],
                    [
                        electronegativity / 2,
                        radius,
                        number / 50,
                        float(element.is_metal),
                        float(57 <= number <= 71),
                        float(89 <= number <= 103),
                    ],
                ]
            )
        )
    return as_tensor(np.nan_to_num(np.array(rows), nan=0.65))


def composition_descriptors(
    shares: Float[Tensor, "crystal element"],
) -> Float[Tensor, "crystal descriptor"]:
    """Stoichiometry, roles, means and spreads: all that a composition says whatever the names of its elements are.

    A network that sees shares by element alone has to learn anew for each pair of elements that 1:1:3 is 1:1:3.

    Args:
        shares: of the elements from hydrogen on, or 1 for each that is there; 0 in all for a composition of nothing.
    """
    num_elements = shares.shape[-1]
    features = element_features()[1 : num_elements + 1].to(shares)
    total = shares.sum(-1, keepdim=True).clamp(min=1e-9)
    shares = shares / total
    has = shares > 0
    electronegativity = features[:, -_NUM_SCALARS]
    order = (
        (shares - 1e-4 * electronegativity)
        .masked_fill(~has, -1.0)
        .argsort(dim=-1, descending=True, stable=True)
    )
    ranked = shares.gather(-1, order)
    roles = features[order[:, :NUM_ROLES]] * (ranked[:, :NUM_ROLES, None] > 0)
    count = has.sum(-1).clamp(max=NUM_SHARES)
    scalars = features[:, -_NUM_SCALARS:]
    mean = shares @ features
    spread = (shares @ scalars.square() - (shares @ scalars).square()).clamp(min=0.0).sqrt()
    present = has.unsqueeze(-1)
    least = torch.where(present, scalars, torch.inf).amin(1).nan_to_num(posinf=0.0)
    most = torch.where(present, scalars, -torch.inf).amax(1).nan_to_num(neginf=0.0)
    one_hot_count = torch.nn.functional.one_hot(count, NUM_SHARES + 1).to(shares)
    return torch.cat(
        [2 * ranked[:, :NUM_SHARES], one_hot_count, mean, 2 * spread, least, most, roles.flatten(1)], dim=-1
    )


@cache
def num_descriptors(num_elements: int) -> int:
    """Length of `composition_descriptors`."""
    return composition_descriptors(torch.zeros(1, num_elements)).shape[-1]
