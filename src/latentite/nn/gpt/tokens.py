"""Features and embeddings of space groups, Wyckoff positions and elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentite.elements import covalent_radii
from latentite.nn.element_features import as_tensor, one_hot
from latentite.symmetry.cells import FAMILIES, family_of
from latentite.symmetry.positions import LETTERS, NUM_GROUPS, space_group, wyckoff_table


@cache
def group_features() -> Float[Tensor, "group_from_0 feature"]:
    """Family, centring, order and inversion of each space group; the row at 0 is zero."""
    rows = [np.zeros(len(FAMILIES) + 6 + 3)]
    families = family_of(torch.from_numpy(np.arange(1, NUM_GROUPS + 1))).numpy()
    for number in range(1, NUM_GROUPS + 1):
        group = space_group(number)
        has_inversion = bool((group.rotations == -np.eye(3, dtype=int)).all(axis=(1, 2)).any())
        rows.append(
            np.concatenate(
                [
                    one_hot(families[number - 1 : number], len(FAMILIES))[0],
                    one_hot(np.array(["PACIFR".index(group.symbol[0])]), 6)[0],
                    [np.log(len(group.rotations)) / 3, float(has_inversion), len(group.polar_axes) / 3],
                ]
            )
        )
    return as_tensor(np.array(rows))


@cache
def position_features() -> Float[Tensor, "position feature"]:
    """Features of each Wyckoff position: letter, size, freedom, site symmetry, representative."""
    table = wyckoff_table()
    symbols = sorted({symbol.replace(".", "") for symbol in table.site_symmetry})
    site = np.array([symbols.index(symbol.replace(".", "")) for symbol in table.site_symmetry])
    letter = np.array([LETTERS.index(one) for one in table.letter])
    multiplicity = np.log(table.num_images)
    per_cell = np.log(table.multiplicity)
    parts = [
        one_hot(letter, len(LETTERS)),
        one_hot(site, len(symbols)),
        one_hot(table.num_free, 4),
        multiplicity[:, None] / 2,
        per_cell[:, None] / 3,
        table.matrix.reshape(len(table), 9),
        np.cos(2 * np.pi * table.offset),
        np.sin(2 * np.pi * table.offset),
        group_features().numpy()[table.group],
    ]
    return as_tensor(np.concatenate(parts, axis=1))


@cache
def covalent_radii_tensor() -> Float[Tensor, " symbol"]:
    """`latentite.elements.covalent_radii` as a tensor."""
    return as_tensor(np.array(covalent_radii()))


class FeaturedEmbedding(nn.Module):
    """A learned vector for each class, beside a linear map of its features that classes share."""

    features: Tensor

    def __init__(self, features: Float[Tensor, "class feature"], width: int) -> None:
        super().__init__()
        self.register_buffer("features", features.to(torch.get_default_dtype()), persistent=False)
        self.own = nn.Embedding(len(features), width)
        self.shared = nn.Linear(features.shape[1], width)
        nn.init.normal_(self.own.weight, std=0.02)

    def forward(self, index: Int[Tensor, "*row"]) -> Float[Tensor, "*row width"]:
        """Embeddings of classes."""
        return self.own(index) + self.shared(self.features[index])

    def table(self) -> Float[Tensor, "class width"]:
        """Embeddings of all classes."""
        return self.own.weight + self.shared(self.features)


@dataclass(frozen=True, kw_only=True, slots=True)
class LetterTables:
    """Columns of the table of positions that masks read."""

    first: Tensor
    count: Tensor
    num_images: Tensor
    num_free: Tensor
    is_polar: Tensor


def letter_tables(device: torch.device) -> LetterTables:
    """The tables on a device; built once for each."""
    return _letter_tables(str(device))


@cache
def _letter_tables(device: str) -> LetterTables:
    table = wyckoff_table()
    return LetterTables(
        first=torch.from_numpy(table.first).to(device),
        count=torch.from_numpy(table.count).to(device),
        num_images=torch.from_numpy(table.num_images).to(device),
        num_free=torch.from_numpy(table.num_free).to(device),
        is_polar=torch.from_numpy(table.is_polar).to(device),
    )
