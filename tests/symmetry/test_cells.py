"""Six numbers of a cell: there and back, and every vector a valid cell of its family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentite.lattice import lattice_from_parameters, parameters_from_lattice
from latentite.symmetry.cells import FAMILIES, FREE, cell_components, family_of, free_components, lattices

CELLS = {
    "triclinic": (2, (5.1, 6.3, 7.7), (81.0, 95.0, 103.0)),
    "monoclinic": (14, (5.1, 6.3, 7.7), (90.0, 112.0, 90.0)),
    "orthorhombic": (62, (5.1, 6.3, 7.7), (90.0, 90.0, 90.0)),
    "tetragonal": (139, (5.1, 5.1, 7.7), (90.0, 90.0, 90.0)),
    "hexagonal": (166, (5.1, 5.1, 17.7), (90.0, 90.0, 120.0)),
    "cubic": (225, (5.1, 5.1, 5.1), (90.0, 90.0, 90.0)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cell_comes_back_from_its_six_numbers(family: str) -> None:
    number, lengths, angles = CELLS[family]
    lattice = lattice_from_parameters(
        torch.tensor([lengths], dtype=torch.float64), torch.tensor([angles], dtype=torch.float64)
    )
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    cell = cell_components(lattice[0].numpy() @ rotation * np.sign(np.linalg.det(rotation)), number, 12)
    back = lattices(torch.from_numpy(cell)[None], torch.tensor([number]), torch.tensor([12]))
    found_lengths, found_angles = parameters_from_lattice(back)
    np.testing.assert_allclose(found_lengths[0], lengths, rtol=1e-10)
    np.testing.assert_allclose(found_angles[0], angles, rtol=1e-10)
    assert np.count_nonzero(cell) == FREE[FAMILIES.index(family)].sum()


def test_every_vector_is_a_valid_cell_of_its_family() -> None:
    generator = torch.Generator().manual_seed(0)
    cell = torch.randn(1000, 6, generator=generator, dtype=torch.float64) * 2
    groups = torch.randint(1, 231, (1000,), generator=generator)
    num_atoms = torch.randint(1, 100, (1000,), generator=generator)
    found = lattices(cell, groups, num_atoms)
    volume = torch.linalg.det(found)
    torch.testing.assert_close(volume, cell[:, 0].exp() * num_atoms, rtol=1e-9, atol=0)
    assert torch.isfinite(found).all()
    lengths, angles = parameters_from_lattice(found)
    right, families = torch.full((1000, 3), 90.0, dtype=torch.float64), family_of(groups)
    fixed = {1: (0, 2), 2: (0, 1, 2), 3: (0, 1, 2), 4: (0, 1), 5: (0, 1, 2)}
    for family, axes in fixed.items():
        chosen = families == family
        torch.testing.assert_close(angles[chosen][:, axes], right[chosen][:, axes])
    torch.testing.assert_close(
        angles[families == 4][:, 2], torch.full_like(right[families == 4][:, 2], 120.0)
    )
    torch.testing.assert_close(lengths[families >= 3][:, 0], lengths[families >= 3][:, 1])
    torch.testing.assert_close(lengths[families == 5][:, 0], lengths[families == 5][:, 2])


def test_components_that_a_family_fixes_are_not_read() -> None:
    groups, num_atoms = torch.tensor([225, 166, 14]), torch.tensor([8, 9, 10])
    cell = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = torch.where(free_components(groups), cell, 0.0)
    assert torch.equal(lattices(cell, groups, num_atoms), lattices(kept, groups, num_atoms))
