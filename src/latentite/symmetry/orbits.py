"""`OrbitBatch`: crystals as space group, orbits and the free part of the cell, packed orbit by orbit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentite.crystal import CrystalBatch
from latentite.symmetry.cells import lattices
from latentite.symmetry.descriptions import Orbits
from latentite.symmetry.positions import NUM_GROUPS, space_group, wyckoff_table


@dataclass(frozen=True, kw_only=True, slots=True)
class OrbitBatch:
    """Crystals packed orbit by orbit; the counterpart of `CrystalBatch` with symmetry.

    Orbits of a crystal come in the order of their Wyckoff letters, those of one letter in the order of their elements.
    """

    space_group: Int[Tensor, " crystal"]
    cell: Float[Tensor, "crystal 6"]
    """As in `latentite.symmetry.cells`."""
    num_orbits: Int[Tensor, " crystal"]
    position: Int[Tensor, " orbit"]
    """Row of `wyckoff_table()`."""
    element: Int[Tensor, " orbit"]
    """Atomic number."""
    coords: Float[Tensor, "orbit 3"]
    """Free coordinates in [0, 1), 0 after the last."""
    properties: dict[str, Float[Tensor, " crystal"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.num_orbits.shape[0]

    @property
    def crystal_index(self) -> Int[Tensor, " orbit"]:
        """For each orbit the crystal that it belongs to."""
        index = torch.arange(len(self), device=self.position.device)
        return index.repeat_interleave(self.num_orbits, output_size=self.position.shape[0])

    @property
    def first_orbit(self) -> Int[Tensor, " crystal"]:
        """Place of each crystal's first orbit."""
        return self.num_orbits.cumsum(0) - self.num_orbits

    def to(self, device: torch.device | str) -> OrbitBatch:
        """The same batch on another device."""
        return OrbitBatch(
            space_group=self.space_group.to(device),
            cell=self.cell.to(device),
            num_orbits=self.num_orbits.to(device),
            position=self.position.to(device),
            element=self.element.to(device),
            coords=self.coords.to(device),
            properties={name: values.to(device) for name, values in self.properties.items()},
        )

    def select(self, index: Int[Tensor, " selected"]) -> OrbitBatch:
        """The crystals at the given places, in that order."""
        num = self.num_orbits[index]
        total = int(num.sum())
        start = self.first_orbit[index] - (num.cumsum(0) - num)
        orbits = torch.arange(total, device=num.device) + start.repeat_interleave(num, output_size=total)
        return OrbitBatch(
            space_group=self.space_group[index],
            cell=self.cell[index],
            num_orbits=num,
            position=self.position[orbits],
            element=self.element[orbits],
            coords=self.coords[orbits],
            properties={name: values[index] for name, values in self.properties.items()},
        )

    @staticmethod
    def concatenate(batches: Sequence[OrbitBatch]) -> OrbitBatch:
        """One batch of all crystals in order; names of properties must agree.

        Raises:
            ValueError: for an empty sequence or batches whose property names differ.
        """
        if not batches:
            raise ValueError("OrbitBatch.concatenate needs at least one batch, got none")
        names = set(batches[0].properties)
        if any(set(batch.properties) != names for batch in batches):
            raise ValueError("property names must agree")
        return OrbitBatch(
            space_group=torch.cat([b.space_group for b in batches]),
            cell=torch.cat([b.cell for b in batches]),
            num_orbits=torch.cat([b.num_orbits for b in batches]),
            position=torch.cat([b.position for b in batches]),
            element=torch.cat([b.element for b in batches]),
            coords=torch.cat([b.coords for b in batches]),
            properties={name: torch.cat([b.properties[name] for b in batches]) for name in names},
        )

    @staticmethod
    def pack(crystals: Sequence[Orbits]) -> OrbitBatch:
        """Many crystals one after the other, coordinates and cells rounded to float32."""
        empty = [np.zeros((0, 3))]
        return OrbitBatch(
            space_group=torch.tensor([one.space_group for one in crystals], dtype=torch.long),
            cell=torch.tensor(np.array([one.cell for one in crystals]), dtype=torch.float32).reshape(-1, 6),
            num_orbits=torch.tensor([len(one.position) for one in crystals], dtype=torch.long),
            position=torch.tensor(np.concatenate([[], *(c.position for c in crystals)]), dtype=torch.long),
            element=torch.tensor(np.concatenate([[], *(c.element for c in crystals)]), dtype=torch.long),
            coords=torch.tensor(np.concatenate(empty + [c.coords for c in crystals]), dtype=torch.float32),
        )

    def unpack(self) -> list[Orbits]:
        """Each crystal by itself, as numpy arrays; without properties."""
        ends = self.num_orbits.cumsum(0)[:-1].cpu().numpy()
        return [
            Orbits(space_group=group, cell=cell, position=position, element=element, coords=coords)
            for group, cell, position, element, coords in zip(
                self.space_group.tolist(),
                self.cell.double().cpu().numpy(),
                np.split(self.position.cpu().numpy(), ends),
                np.split(self.element.cpu().numpy(), ends),
                np.split(self.coords.double().cpu().numpy(), ends),
                strict=True,
            )
        ]

    @property
    def num_atoms(self) -> Int[Tensor, " crystal"]:
        """Atoms in the primitive cell."""
        tables = position_tensors(self.position.device)
        total = torch.zeros_like(self.num_orbits)
        return total.index_add_(0, self.crystal_index, tables.num_images[self.position])

    def to_crystals(self) -> CrystalBatch:
        """All atoms of the primitive cells, special coordinates exact; float64.

        Atoms come orbit by orbit. The basis is the primitive one of the setting, not reduced.
        """
        tables = position_tensors(self.position.device)
        num_images = tables.num_images[self.position]
        total = int(num_images.sum())
        orbit = torch.arange(len(self.position), device=self.position.device)
        orbit = orbit.repeat_interleave(num_images, output_size=total)
        image = torch.arange(total, device=orbit.device) - (num_images.cumsum(0) - num_images)[orbit]
        position, crystal = self.position[orbit], self.crystal_index[orbit]
        maps = tables.image_matrix[position, image]
        conventional = torch.einsum("aij,aj->ai", maps, self.coords[orbit].double())
        conventional = conventional + tables.image_offset[position, image]
        coords = torch.einsum("ai,aij->aj", conventional, tables.to_primitive[self.space_group[crystal]])
        return CrystalBatch(
            atomic_numbers=self.element[orbit],
            frac_coords=coords - coords.floor(),
            lattice=self.primitive_lattices(),
            num_atoms=self.num_atoms,
            properties=dict(self.properties),
        )

    def primitive_lattices(self) -> Float[Tensor, "crystal 3 3"]:
        """Primitive lattices of the setting (rows, Å), float64."""
        tables = position_tensors(self.position.device)
        primitive = tables.primitive[self.space_group]
        per_cell = (1 / torch.linalg.det(primitive)).round().long()
        conventional = lattices(self.cell.double(), self.space_group, self.num_atoms * per_cell)
        return primitive @ conventional


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PositionTensors:
    """`WyckoffTable` as tensors, float64."""

    num_images: Int[Tensor, " position"]
    num_free: Int[Tensor, " position"]
    matrix: Float[Tensor, "position 3 3"]
    offset: Float[Tensor, "position 3"]
    image_matrix: Float[Tensor, "position 48 3 3"]
    image_offset: Float[Tensor, "position 48 3"]
    primitive: Float[Tensor, "group_from_0 3 3"]
    """Primitive basis vectors of each group as rows, in units of the conventional ones; the identity at 0."""
    to_primitive: Float[Tensor, "group_from_0 3 3"]
    """Its inverse: conventional fractional coordinates (rows) to primitive ones."""


def position_tensors(device: torch.device) -> PositionTensors:
    """The table on a device; built once for each."""
    return _position_tensors(str(device))


@cache
def _position_tensors(device: str) -> PositionTensors:
    table = wyckoff_table()
    primitive = np.stack([np.eye(3), *(space_group(number).primitive for number in range(1, NUM_GROUPS + 1))])

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return PositionTensors(
        num_images=tensor(table.num_images),
        num_free=tensor(table.num_free),
        matrix=tensor(table.matrix),
        offset=tensor(table.offset),
        image_matrix=tensor(table.image_matrix),
        image_offset=tensor(table.image_offset),
        primitive=tensor(primitive),
        to_primitive=tensor(np.linalg.inv(primitive)),
    )
