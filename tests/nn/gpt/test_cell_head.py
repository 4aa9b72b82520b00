"""The density of cells."""

from __future__ import annotations

import torch

from latentite.nn.gpt.cell import CellHead


def test_the_density_of_each_component_integrates_to_one() -> None:
    torch.manual_seed(0)
    head = CellHead(16, 4).double()
    hidden = torch.randn(1, 16, dtype=torch.float64)
    grid = torch.linspace(-60, 60, 40_001, dtype=torch.float64)
    values = torch.randn(6, dtype=torch.float64).repeat(len(grid), 1)
    free = torch.ones(len(grid), 6, dtype=torch.bool)
    for component in (0, 3, 5):
        shifted = values.clone()
        shifted[:, component] = grid
        density = head(hidden.expand(len(grid), -1), shifted, free)[:, component].exp()
        assert abs(float(torch.trapezoid(density, grid)) - 1) < 1e-4


def test_a_component_depends_on_those_before_it_only() -> None:
    torch.manual_seed(0)
    head = CellHead(16, 4)
    hidden, values = torch.randn(3, 16), torch.randn(3, 6)
    free = torch.ones(3, 6, dtype=torch.bool)
    changed = values.clone()
    changed[:, 3] += 1.0
    before, after = head(hidden, values, free), head(hidden, changed, free)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_components_that_the_family_fixes_count_nothing() -> None:
    torch.manual_seed(0)
    head = CellHead(16, 4)
    free = torch.tensor([[True, False, False, False, False, False]])
    density = head(torch.randn(1, 16), torch.randn(1, 6), free)
    assert torch.equal(density[:, 1:], torch.zeros(1, 5))
